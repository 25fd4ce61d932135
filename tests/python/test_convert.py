# SPDX-License-Identifier: Apache-2.0
"""Ways in and out: torch.save, DCP and safetensors files through a job and back, bit for bit; sources that lie.

Catches: a slice in the wrong place, a tie that is lost, a record without its checksum, memory that grows with a tensor, a
checkpoint made of a damaged file, a pickle that is called.
"""
import collections
import gc
import io
import json
import mmap
import os
import pickle
import resource
import signal
import struct
import sys
import zipfile

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file

import cairn
import conftest
from cluster import wait_until
from cairn.convert import __main__ as convert
from cairn.convert import files, to_dcp, to_torch
from cairn.convert.errors import ConvertError
from cairn.convert.importer import open_source

ARENA = 2 << 20  # of an import's ranks: small, so that there are many


@pytest.fixture(scope="module")
def cluster():
    """A daemon whose arenas cannot hold what is imported here: ranks that are stored must make room for the next."""
    daemon = conftest.Daemon(node__arena_max_mib=24)
    os.environ["CAIRN_SOCKET"] = daemon.socket
    try:
        yield daemon.start()
    finally:
        daemon.close()
        os.environ.pop("CAIRN_SOCKET")


def take(path, job, *options):
    return convert.main(["import", f"--path={path}", f"--job={job}", f"--arena={ARENA}", *map(str, options)])


def give(job, to, kind, *options):
    return convert.main(["export", f"--job={job}", f"--to={to}", f"--format={kind}", *options])


def bits(tensor):
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def same(a, b, path="state"):
    assert type(a) is type(b) or isinstance(a, torch.Tensor), (path, type(a), type(b))
    if isinstance(a, torch.Tensor):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), path
        assert a.numel() == 0 or torch.equal(bits(a), bits(b)), path
    elif isinstance(a, dict):
        assert list(a) == list(b), (path, list(a), list(b))
        for key in a:
            same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b)):
            same(x, y, f"{path}.{i}")
    else:
        assert a == b or (a != a and b != b), path


def random(shape, dtype):
    """Any bits but those of a NaN, which compare by bits anyway; bool only 0 and 1."""
    if dtype == torch.bool:
        return torch.randint(0, 2, shape) == 1
    size = torch.empty(0, dtype=dtype).element_size()
    return torch.randint(0, 256, (*shape, size), dtype=torch.uint8).view(dtype).view(shape)


DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64, torch.uint64, torch.float16,
          torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2]


def state_of_everything():
    torch.manual_seed(7)
    wte = random((300, 1024), torch.bfloat16)
    big = random((1500, 1024), torch.float32)  # 6 MiB: larger than a rank's arena
    model = collections.OrderedDict([("wte.weight", wte), ("h.0.weight", big), ("lm_head.weight", wte)])
    return {
        "model": model,
        "kinds": {str(d).split(".")[1]: random((3, 5), d) for d in DTYPES},
        "odd": [random((), torch.float32), torch.empty(0, 7, dtype=torch.float16), random((1, 3 << 19), torch.int16),
                random((64, 48), torch.float32).t(), random((4, 6, 8), torch.bfloat16)[:, ::2]],
        "optimizer": {"state": {"0": {"step": 17, "exp_avg": random((9,), torch.float32)}}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.95), "params": [0]}]},
        "rng": (torch.get_rng_state(), "text", None, True, 2**70, 1.5),
    }


def test_torch_file(cluster, job, tmp_path):
    state = state_of_everything()
    torch.save(state, tmp_path / "in.pt")
    assert take(tmp_path / "in.pt", job, "--step", 5) == 0
    listed = json.loads(cluster.cairn("ls", job, "--json").stdout)
    assert listed["latest"] == 5 and listed["checkpoints"][0]["world_size"] > 4
    assert give(job, tmp_path / "out", "torch", "--merge") == 0
    path = tmp_path / "out" / "model.pt"
    back = torch.load(path, weights_only=True)
    same(state, back)
    assert back["model"]["wte.weight"].untyped_storage()._cdata == back["model"]["lm_head.weight"].untyped_storage()._cdata
    assert zipfile.ZipFile(path).testzip() is None
    assert os.path.getsize(path) < os.path.getsize(tmp_path / "in.pt") + (64 << 10)
    assert take(path, job + "-again") == 0  # its checksums are right
    assert give(job, tmp_path / "out", "torch", "--merge") == 1  # is there already
    assert not list((tmp_path / "out").glob("*.part"))


def test_torch_file_of_each_rank(cluster, job, tmp_path):
    state = {"a": random((300, 1024), torch.float32), "n": 3}
    torch.save(state, tmp_path / "in.pt")
    assert take(tmp_path / "in.pt", job, f"--arena={1 << 20}") == 0
    assert give(job, tmp_path / "out", "torch") == 0
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["rank-00000.pt"]  # the other ranks of an import have no state
    same(state, torch.load(tmp_path / "out" / "rank-00000.pt", weights_only=True))
    assert give(job, tmp_path / "out", "torch", "--rank=99") == 3


def test_parts_of_a_state(cluster, job, tmp_path):
    state = {"model": collections.OrderedDict(a=random((2, 2), torch.float32)), "ema": {"a": random((2, 2), torch.float32)}, "epoch": 3}
    torch.save(state, tmp_path / "in.pt")
    assert take(tmp_path / "in.pt", job) == 0
    assert give(job, tmp_path / "m", "torch", "--merge", "--only=model.", "--strip=model.") == 0
    same({"a": state["model"]["a"]}, dict(torch.load(tmp_path / "m" / "model.pt", weights_only=True)))
    assert give(job, tmp_path / "x", "torch", "--merge", "--only=nothing") == 3
    assert cluster.cairn("restore", job, "--to", tmp_path / "s", "--merge", "--only", "model.", "--strip", "model").returncode == 0
    same({"a": state["model"]["a"]}, load_file(tmp_path / "s" / "model.safetensors"))


def test_dcp_directory(cluster, job, tmp_path, monkeypatch):
    state = state_of_everything()
    dcp.save(state, checkpoint_id=tmp_path / "in", no_dist=True)
    assert take(tmp_path / "in", job) == 0
    monkeypatch.setattr(to_dcp, "CHUNK", 1 << 20)  # so that tensors are several items
    monkeypatch.setattr(to_dcp, "FILE", 3 << 20)  # and several files
    assert give(job, tmp_path / "out", "dcp") == 0
    assert len(list((tmp_path / "out").glob("*.distcp"))) > 1
    assert take(tmp_path / "out", job + "-again") == 0  # a tensor in parts, as many ranks leave it
    assert give(job + "-again", tmp_path / "pt", "torch", "--merge") == 0
    back = torch.load(tmp_path / "pt" / "model.pt", weights_only=True)
    zeros = state_of_everything()
    for part in (zeros["model"], zeros["kinds"], zeros["optimizer"]["state"]["0"]):
        for tensor in part.values():
            if isinstance(tensor, torch.Tensor):
                tensor.view(-1).view(torch.uint8).zero_()
    zeros["optimizer"]["state"]["0"]["step"] = 0
    dcp.load(zeros, checkpoint_id=tmp_path / "out", no_dist=True)
    same(state, zeros)
    same(dict(state["model"]), dict(back["model"]))
    same(state["kinds"], back["kinds"])
    assert back["optimizer"]["state"]["0"]["step"] == 17 and back["rng"][4] == 2**70


def test_safetensors_and_shards(cluster, job, tmp_path):
    tensors = {f"t.{d}".replace("torch.", ""): random((400, 77), d) for d in DTYPES if d not in (torch.complex64, torch.complex128)}
    tensors["none"] = torch.empty(0, 3)
    save_file(tensors, tmp_path / "in.safetensors", {"cairn.step": "9"})
    done = cluster.cairn("import", tmp_path / "in.safetensors", job, "--arena", "1M", "--json", env=dict(os.environ, CAIRN_PYTHON=sys.executable, PYTHONPATH=str(conftest.ROOT / "client/python/src")))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 9
    out = tmp_path / "out"
    assert cluster.cairn("restore", job, "--to", out, "--merge", "--shard-size", "100K").returncode == 0
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 3 and files == [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
    read = {name: t for f in files for name, t in load_file(out / f).items()}
    same(dict(sorted(tensors.items())), dict(sorted(read.items())))
    assert {n: f for f in files for n in load_file(out / f)} == index["weight_map"]
    assert cluster.cairn("restore", job, "--to", out, "--merge").returncode == 1  # the index of the shards is there
    assert cluster.cairn("restore", job, "--to", out, "--merge", "--force").returncode == 0
    assert not (out / "model.safetensors.index.json").exists()
    assert cluster.cairn("restore", job, "--to", tmp_path / "ranks").returncode == 0
    assert len(list((tmp_path / "ranks").iterdir())) > 1
    assert take(tmp_path / "ranks", job + "-again") == 0  # slices, put together by their notes
    assert cluster.cairn("restore", job + "-again", "--to", tmp_path / "again", "--merge").returncode == 0
    same(dict(sorted(tensors.items())), dict(sorted(load_file(tmp_path / "again" / "model.safetensors").items())))


def test_documents_go_with_safetensors(cluster, job, tmp_path):
    state = {"model": {"w": random((5,), torch.complex128)}, "epoch": 3}
    torch.save(state, tmp_path / "in.pt")
    assert take(tmp_path / "in.pt", job) == 0
    assert cluster.cairn("restore", job, "--to", tmp_path / "out", "--merge", "--documents").returncode == 0
    assert take(tmp_path / "out", job + "-again") == 0
    assert give(job + "-again", tmp_path / "pt", "torch", "--merge") == 0
    same(state, torch.load(tmp_path / "pt" / "model.pt", weights_only=True))


def test_from_pretrained(cluster, job, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=200, n_positions=16)
    model = transformers.GPT2LMHeadModel(config)
    torch.save({"model": model.state_dict(), "epoch": 1}, tmp_path / "in.pt")
    assert take(tmp_path / "in.pt", job) == 0
    out = tmp_path / "out"
    done = cluster.cairn("restore", job, "--to", out, "--merge", "--only", "model.", "--strip", "model.", "--shard-size", "40KB")
    assert done.returncode == 0, done.stderr
    config.save_pretrained(out)
    loaded, said = transformers.GPT2LMHeadModel.from_pretrained(out, output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"]
    same(dict(model.state_dict()), dict(loaded.state_dict()))


def zeroed(value):
    if isinstance(value, torch.Tensor):
        return torch.zeros_like(value)
    if isinstance(value, dict):
        return type(value)((k, zeroed(v)) for k, v in value.items())
    return type(value)(map(zeroed, value)) if isinstance(value, (list, tuple)) else value


def test_what_a_checkpointer_saved_and_loads(cluster, job, tmp_path):
    state = {"model": {"w": random((700, 300), torch.bfloat16), "z": random((3,), torch.complex128)}, "step": 3, "rng": [torch.get_rng_state()]}
    state["model"]["tied"] = state["model"]["w"]
    with cairn.Checkpointer(job) as saver:
        saver.save(3, state, wait="committed")
    assert give(job, tmp_path / "t", "torch", "--merge") == 0
    same(state, torch.load(tmp_path / "t" / "model.pt", weights_only=True))
    assert give(job, tmp_path / "d", "dcp") == 0
    assert cluster.cairn("restore", job, "--to", tmp_path / "s", "--merge").returncode == 0
    assert set(load_file(tmp_path / "s" / "model.safetensors")) == {"model.w", "model.z", "rng.0"}  # no documents, ties once
    for kind, path in (("torch", tmp_path / "t" / "model.pt"), ("dcp", tmp_path / "d")):
        assert take(path, f"{job}-{kind}", "--step=4") == 0
        loaded = zeroed(state)
        with cairn.Checkpointer(f"{job}-{kind}") as loader:
            assert loader.load(loaded) == 4
        same(state, loaded)


def test_ranks_with_tensors_of_their_own(cluster, job, tmp_path, monkeypatch):
    states = [{"w": random((600, 512), torch.float32), "rank": r, "shape": torch.zeros(r + 1)} for r in (0, 1)]
    savers = [cairn.Checkpointer(job, r, 2, start_id=job) for r in (0, 1)]
    handles = [saver.save(1, state) for saver, state in zip(savers, states)]
    handles[0].wait("committed")
    for saver in savers:
        saver.close()
    monkeypatch.setattr(to_torch, "WINDOW", 1 << 20)  # a tensor is larger: it is read into the mapped file
    assert give(job, tmp_path, "torch") == 0
    for r, state in enumerate(states):
        same(state, torch.load(tmp_path / f"rank-{r:05}.pt", weights_only=True))
        assert zipfile.ZipFile(tmp_path / f"rank-{r:05}.pt").testzip() is None
    assert give(job, tmp_path, "torch", "--merge") == 1  # they call different tensors "shape"


def test_through_the_storage_of_dcp(cluster, job, tmp_path):
    storage = pytest.importorskip("cairn.torch")
    state = {"w": random((300, 100), torch.float32), "z": random((3,), torch.complex128), "n": {"epoch": 3, "pair": (torch.arange(4), "x")}}
    dcp.save(state, checkpoint_id=1, storage_writer=storage.StorageWriter(job), no_dist=True)
    storage.close_sessions()
    assert give(job, tmp_path / "t", "torch") == 0
    same(state, torch.load(tmp_path / "t" / "model.pt", weights_only=True))
    assert give(job, tmp_path / "d", "dcp") == 0
    for kind, path in (("torch", tmp_path / "t" / "model.pt"), ("dcp", tmp_path / "d")):
        assert take(path, f"{job}-{kind}") == 0
        loaded = {"w": torch.zeros(300, 100), "z": torch.zeros(3, dtype=torch.complex128), "n": {"epoch": 0}}
        dcp.load(loaded, checkpoint_id=0, storage_reader=storage.StorageReader(f"{job}-{kind}"), no_dist=True)
        same({"w": state["w"], "z": state["z"], "n": {"epoch": 3}}, loaded)


# ---- memory ------------------------------------------------------------------------------------------------------------



def kib(field):
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(field + ":"))


def peak_of(arguments):
    """MiB by which this process grew at most during a conversion."""
    gc.collect()
    try:
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")  # VmHWM begins anew
    except OSError as error:
        pytest.skip(f"this kernel does not measure peaks anew: {error}")
    base = kib("VmRSS")
    assert convert.main(arguments) == 0
    return (kib("VmHWM") - base) >> 10


def test_memory_is_bounded(cluster, job, tmp_path, monkeypatch):
    mib = 96
    monkeypatch.setattr(to_torch, "WINDOW", 8 << 20)
    monkeypatch.setattr(to_dcp, "CHUNK", 8 << 20)
    torch.save({"w": torch.arange(mib << 18, dtype=torch.int32).view(-1, 1024)}, tmp_path / "big.pt")
    grew = [peak_of(["import", f"--path={tmp_path}/big.pt", f"--job={job}", f"--arena={8 << 20}"]),
            peak_of(["export", f"--job={job}", f"--to={tmp_path}/t", "--format=torch", "--merge"]),
            peak_of(["export", f"--job={job}", f"--to={tmp_path}/d", "--format=dcp"]),
            peak_of(["import", f"--path={tmp_path}/d", f"--job={job}-again", f"--arena={8 << 20}"])]
    assert max(grew) < mib // 2, grew
    with open(tmp_path / "big.pt", "rb") as a, open(tmp_path / "t" / "model.pt", "rb") as b:
        a, b = (mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) for f in (a, b))
        wanted = torch.arange((mib << 18) - 1024, mib << 18, dtype=torch.int32).numpy().tobytes()
        assert a.find(wanted) > 0 and b.find(wanted) > 0


# ---- sources that lie --------------------------------------------------------------------------------------------------


def safetensors_file(header, body=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(dtype="F32", shape=(2,), at=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(at)}


SAFETENSORS = {
    "header beyond the file": safetensors_file({"a": entry()}, b"x" * 8, length=1 << 40),
    "header of 2 GiB": safetensors_file({"a": entry()}, b"x" * 8, length=2 << 30),
    "no JSON": safetensors_file(b"{not json", b""),
    "nested too deeply": safetensors_file(b'{"a":' * 100000, b""),
    "overlap": safetensors_file({"a": entry(), "b": entry(at=(4, 12))}, b"x" * 12),
    "hole": safetensors_file({"a": entry(), "b": entry(at=(12, 20))}, b"x" * 20),
    "tail": safetensors_file({"a": entry()}, b"x" * 9),
    "cut off": safetensors_file({"a": entry()}, b"x" * 7),
    "other size": safetensors_file({"a": entry(shape=(3,))}, b"x" * 8),
    "huge shape": safetensors_file({"a": entry(shape=(1 << 62, 1 << 62))}, b"x" * 8),
    "negative": safetensors_file({"a": entry(at=(-8, 0))}, b""),
    "unknown dtype": safetensors_file({"a": entry(dtype="F4")}, b"x" * 8),
    "twice": safetensors_file(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"),
    "slice beyond its tensor": safetensors_file({"a": entry(), "__metadata__": {"cairn.slice.a": '{"tensor":"a","shape":[2],"offset":[1]}'}}, b"x" * 8),
    "a name that is Cairn's": safetensors_file({".cairn/x": entry()}, b"x" * 8),
    "dtype is a list": safetensors_file({"a": {"dtype": [], "shape": [2], "data_offsets": [0, 8]}}, b"x" * 8),
    "step beyond 64 bits": safetensors_file({"a": entry(), "__metadata__": {"cairn.step": "9" * 30}}, b"x" * 8),
    "a name twice among many": safetensors_file(
        b'{"n":0,' + b",".join(b'"%d":0' % i for i in range(100000)) + b',"99999":0}'
    ),
    "empty": b"",
}


@pytest.mark.parametrize("step", ["\u00b2", "9" * 5000])
def test_step_that_is_none(cluster, job, tmp_path, step):
    header = {"a": entry(), "__metadata__": {"cairn.step": step}}
    (tmp_path / "in.safetensors").write_bytes(safetensors_file(header, b"x" * 8))
    assert take(tmp_path / "in.safetensors", job) == 0


def nothing_came_of(cluster, job, code):
    def states():
        listed = cluster.cairn("ls", job, "--json")
        return {c["state"] for c in json.loads(listed.stdout).get("checkpoints", [])} if listed.returncode == 0 else set()

    assert code != 0
    wait_until("the checkpoint to be aborted", lambda: "undecided" not in states())
    assert states() <= {"aborted"}


@pytest.mark.parametrize("what", SAFETENSORS)
def test_bad_safetensors(cluster, job, tmp_path, what, capsys):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(SAFETENSORS[what])
    nothing_came_of(cluster, job, take(path, job))
    assert "cairn: import: " in capsys.readouterr().err


def test_bad_index(cluster, job, tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "model-00001-of-00001.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    for weight_map in ({"a": "../../etc/passwd"}, {"a": "model-00001-of-00001.safetensors", "b": "model-00001-of-00001.safetensors"}, {}, [1]):
        index.write_text(json.dumps({"weight_map": weight_map}))
        if weight_map != {}:
            nothing_came_of(cluster, job, take(tmp_path, job))
    for file in (5, None, "a\0b", "\ud800", ".."):
        index.write_text(json.dumps({"weight_map": {"a": file}}))
        assert take(tmp_path, job) == 5


class Evil:
    def __reduce__(self):
        return (os.system, ("touch " + os.environ["EVIL"],))


@pytest.fixture
def evil(tmp_path, monkeypatch):
    monkeypatch.setenv("EVIL", str(tmp_path / "evil"))
    yield
    assert not (tmp_path / "evil").exists(), "code of a file was run"


def rewritten(path, name, change):
    """A copy of a zip file with one record changed; its sum is made new."""
    out = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        for info in old.infolist():
            data = old.read(info)
            new.writestr(*change(info.filename, data) if info.filename.endswith(name) else (info.filename, data))
    return out.getvalue()


def test_bad_torch_files(cluster, job, tmp_path, evil, capsys):
    good, bad = tmp_path / "good.pt", tmp_path / "bad.pt"
    torch.save({"w": torch.arange(100000.0), "v": torch.zeros(3)}, good)
    data = good.read_bytes()
    at = data.index(torch.arange(100000.0).numpy().tobytes())
    flipped = bytearray(data)
    flipped[at + 70000] ^= 1
    far = io.BytesIO()
    with zipfile.ZipFile(far, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02N.")
        archive.filelist[0].header_offset = (1 << 64) - 1
    torch.save({"w": Evil()}, tmp_path / "evil.pt")
    torch.save({"w": torch.zeros(1).expand(1 << 40)}, tmp_path / "wide.pt")
    for what, text in {
        "a flipped bit": bytes(flipped),
        "cut off": data[: len(data) // 2],
        "code": (tmp_path / "evil.pt").read_bytes(),
        "much of little": (tmp_path / "wide.pt").read_bytes(),
        "another name": rewritten(good, "data/0", lambda name, d: ("../../" + name, d)),
        "a shorter record": rewritten(good, "data/0", lambda name, d: (name, d[:1000])),
        "no pickle": rewritten(good, "data.pkl", lambda name, d: (name, b"\x80\x02")),
        "a record beyond 64 bits": far.getvalue(),
        "an old file": pickle.dumps({"w": 1}, protocol=2),
        "no file at all": b"hello",
    }.items():
        bad.write_bytes(text)
        code = take(bad, job, "--format=torch")
        assert "cairn: import: " in capsys.readouterr().err, what
        nothing_came_of(cluster, job, code)
    assert take(good, job) == 0
    bad.write_bytes(bytes(flipped))
    assert take(bad, job, "--unchecked") == 0


def test_bad_dcp(cluster, job, tmp_path, evil, capsys):
    good = tmp_path / "good"
    dcp.save({"w": torch.arange(300000.0).view(300, 1000), "n": {"x": 1}}, checkpoint_id=good, no_dist=True)
    metadata, data = (good / ".metadata").read_bytes(), (good / "__0_0.distcp").read_bytes()
    loaded = pickle.loads(metadata)
    key = next(k for k in loaded.storage_data if k.fqn == "w")

    def changed(change):
        again = pickle.loads(metadata)
        change(again)
        return pickle.dumps(again)

    def info(again):
        return again.storage_data[key]

    def endless(again):
        entry_of_x, index = again.state_dict_metadata.pop("n.x"), next(k for k in again.storage_data if k.fqn == "n.x")
        for i in (1, 1 << 60):  # n becomes a list
            again.state_dict_metadata[f"n.{i}"], again.planner_data[f"n.{i}"] = entry_of_x, ("n", i)
            again.storage_data[type(index)(f"n.{i}")] = again.storage_data[index]

    def sized(*size):
        def change(again):
            w, zero = again.state_dict_metadata["w"], torch.Size([0] * len(size))
            w.size, w.chunks = torch.Size(size), [type(w.chunks[0])(zero, torch.Size(size))]
            again.storage_data[type(key)("w", zero)] = again.storage_data[key]

        return change

    def halves(*begins):
        """Two chunks of 150 rows, both stored where one of 150 rows is."""

        def change(again):
            w = again.state_dict_metadata["w"]
            del again.state_dict_metadata["n.x"]
            for begin in begins:
                again.storage_data[type(key)("w", torch.Size([begin, 0]))] = half.storage_data[next(iter(half.storage_data))]
            w.chunks = [type(w.chunks[0])(torch.Size([begin, 0]), torch.Size([150, 1000])) for begin in begins]

        return change

    dcp.save({"w": torch.arange(150000.0).view(150, 1000)}, checkpoint_id=tmp_path / "half", no_dist=True)
    half = pickle.loads((tmp_path / "half" / ".metadata").read_bytes())
    bad = tmp_path / "bad"
    bad.mkdir()
    flipped = bytearray(data)
    flipped[loaded.storage_data[key].offset + 500000] ^= 1
    cases = {
        "code in the metadata": (pickle.dumps(Evil()), data),
        "code deep in it": (changed(lambda m: setattr(m, "planner_data", {"w": Evil()})), data),
        "a file elsewhere": (changed(lambda m: setattr(info(m), "relative_path", "../good/__0_0.distcp")), data),
        "beyond the end": (changed(lambda m: setattr(info(m), "offset", 1 << 40)), data),
        "a chunk twice": (changed(lambda m: m.state_dict_metadata["w"].chunks.append(m.state_dict_metadata["w"].chunks[0])), data),
        "one half twice": (changed(halves(0, 0)), (tmp_path / "half" / "__0_0.distcp").read_bytes()),
        "halves that overlap": (changed(halves(0, 50)), (tmp_path / "half" / "__0_0.distcp").read_bytes()),
        "sizes that overflow": (changed(sized(1 << 62, 1 << 62)), data),
        "no elements, sizes that overflow": (changed(sized(0, 1 << 62, 1 << 62)), data),
        "a transformation that is no list": (changed(lambda m: setattr(info(m), "transform_descriptors", 5)), data),
        "no chunk": (changed(lambda m: m.state_dict_metadata["w"].chunks.clear()), data),
        "another shape": (changed(lambda m: setattr(m.state_dict_metadata["w"], "size", torch.Size([300, 1001]))), data),
        "another dtype": (changed(lambda m: setattr(m.state_dict_metadata["w"].properties, "dtype", torch.int32)), data),
        "a path into a list without end": (changed(endless), data),
        "a flipped bit": (metadata, bytes(flipped)),
        "cut off": (metadata, data[:-4000]),
        "no pickle": (b"hello", data),
        "a memo of 8 GiB": (b"\x80\x02Nr" + struct.pack("<L", 1 << 29) + b".", data),
    }
    for what, (m, d) in cases.items():
        (bad / ".metadata").write_bytes(m)
        (bad / "__0_0.distcp").write_bytes(d)
        code = take(bad, job, "--format=dcp")
        said = capsys.readouterr().err
        assert "cairn: import: " in said, what
        assert "code" not in what or "posix.system" in said, said
        assert "memo" not in what or "MemoryError" in said, said
        nothing_came_of(cluster, job, code)


    # Sizes that only the metadata says: nothing is planned by them.
    (bad / ".metadata").write_bytes(changed(sized(1 << 34)))
    (bad / "__0_0.distcp").write_bytes(data)
    with pytest.raises(ConvertError, match="bytes are no float32"):
        open_source(str(bad), "dcp")


# ---- places that lie ---------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(cluster, job, tmp_path):
    torch.save({"w": torch.arange(1000000.0), "v": [torch.zeros(3)] * 2}, tmp_path / "in.pt")
    assert take(tmp_path / "in.pt", job) == 0


def test_links_where_a_temporary_file_would_be(cluster, saved, job, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for kind, name in (("torch", "rank-00000.pt"), ("dcp", "__0_0.distcp"), ("safetensors", "rank-00000.safetensors")):
        to = tmp_path / kind
        to.mkdir()
        (to / (name + ".part")).symlink_to(victim)
        code = cluster.cairn("restore", job, "--to", to).returncode if kind == "safetensors" else give(job, to, kind)
        assert code == 1 and victim.read_text() == "mine", kind
    index = tmp_path / "index"
    index.mkdir()
    (index / "model.safetensors.index.json.part").symlink_to(victim)
    done = cluster.cairn("restore", job, "--merge", "--shard-size", "1M", "--to", index)
    assert done.returncode == 0 and victim.read_text() == "mine", done
    assert not (index / "model.safetensors.index.json").is_symlink()


def test_a_file_that_another_has_just_finished(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"

    def flock(fd, how):  # the other one renames it, and lets go, between our opening and locking it
        (tmp_path / "model.pt.part").rename(path)
        path.write_text("whole")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    with pytest.raises(ConvertError, match="another process"):
        files.NewFile(str(path), False)
    assert path.read_text() == "whole"


@pytest.mark.parametrize("kind", ["torch", "dcp"])
@pytest.mark.parametrize("limit", [100, 5000, 300000])
def test_export_without_room(cluster, saved, job, tmp_path, kind, limit, capsys):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        assert give(job, tmp_path / "out", kind, "--json") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "io"
    assert not [name for name in os.listdir(tmp_path / "out") if name.endswith((".part", ".pt", ".metadata"))]


@pytest.mark.parametrize("kind", ["auto", "torch", "safetensors", "dcp"])
def test_pipes_are_not_waited_for(cluster, job, tmp_path, kind, capsys):
    os.mkfifo(tmp_path / ".metadata")
    signal.alarm(20)
    try:
        assert take(tmp_path if kind == "dcp" else tmp_path / ".metadata", job, f"--format={kind}") == 1
    finally:
        signal.alarm(0)
    assert "a file is wanted" in capsys.readouterr().err


def test_more_files_than_may_be_open(cluster, job, tmp_path):
    writer = dcp.FileSystemWriter(tmp_path, single_file_per_rank=False)
    dcp.save({f"w{i}": torch.arange(3.0) for i in range(150)}, storage_writer=writer, no_dist=True)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, before[1]))
    try:
        assert take(tmp_path, job) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_job_that_lives_is_left_alone(cluster, job, tmp_path):
    torch.save({"w": torch.zeros(3)}, tmp_path / "in.pt")
    with cairn.Session(job, arena_bytes=1 << 20):
        assert take(tmp_path / "in.pt", job, "--timeout=5") == 4
    assert take(tmp_path / "in.pt", job) == 0


def test_what_the_tool_says_without_python(cluster, job, tmp_path, monkeypatch, capsys):
    for python, want in (("/nonexistent", "CAIRN_PYTHON"), (sys.executable, "pip install")):
        env = {**os.environ, "CAIRN_PYTHON": python, "PYTHONPATH": "/nonexistent"}
        done = cluster.cairn("restore", job, "--to", tmp_path, "--format", "torch", env=env)
        assert done.returncode == 1 and want in done.stderr, done
    monkeypatch.setitem(sys.modules, "cairn.convert.exporter", None)  # as where torch is missing
    assert give(job, tmp_path, "torch") == 1 and "pip install torch" in capsys.readouterr().err
