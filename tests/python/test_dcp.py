# SPDX-License-Identifier: Apache-2.0
"""cairn.torch under torch.distributed.checkpoint: the scenarios of PyTorch's own tests for storage back ends, and what is
particular to Cairn. Each test says which promise it holds."""
import contextlib
import json
import pathlib
import pickle
import re

import pytest

torch = pytest.importorskip("torch")
import torch.distributed.checkpoint as dcp  # noqa: E402
from torch.distributed.checkpoint.api import CheckpointException  # noqa: E402
from torch.distributed.checkpoint.default_planner import (  # noqa: E402
    DefaultLoadPlanner, DefaultSavePlanner, _EmptyStateDictLoadPlanner,
)
from torch.distributed.checkpoint.staging import AsyncStager as Protocol  # noqa: E402
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict, _load_state_dict_from_keys  # noqa: E402

import cairn  # noqa: E402
import dcp_ranks  # noqa: E402
from cairn.torch import AsyncStager, StagingWriter, StorageReader, StorageWriter, close_sessions  # noqa: E402
from cairn.torch import _document, _ids, _memory  # noqa: E402
from forked import run_forked  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is", "ignore:torch.quantize")


@pytest.fixture(autouse=True)
def sessions():
    yield
    close_sessions()


def values():
    """One tensor of each kind that storage back ends stumble over."""
    base = torch.arange(60, dtype=torch.float32).view(6, 10)
    return {
        "dense": base.clone(), "transposed": base.t(), "every second": base[:, ::2], "expanded": base[0].expand(3, 10),
        "scalar": torch.tensor(2.5), "empty": torch.empty(0, 3), "bf16": base.bfloat16(), "bool": base > 7,
        "fp8": base.to(torch.float8_e4m3fn), "i64": torch.arange(5), "c64": torch.complex(base, -base),
        "c128": torch.complex(base, -base).to(torch.complex128),
        "conjugated": torch.complex(base, base).conj(), "c128 scalar": torch.tensor(1 + 2j, dtype=torch.complex128),
        "parameter": torch.nn.Parameter(base.clone()),
    }


def state(fill=None):
    made = {"model": values(),
            "optim": {"state": [{"step": torch.tensor(4.0)}, {"step": torch.tensor(5.0)}], "betas": [0.9, 0.95]}, "epoch": 3,
            "name": "run ä", "nothing": None, "mixed": {"deep": {"x": [1, {"y": torch.ones(2)}]}}}
    return made if fill is None else zeroed(made)


def zeroed(value):
    if isinstance(value, torch.Tensor):
        return torch.zeros(value.shape, dtype=value.dtype)
    if isinstance(value, dict):
        return {k: zeroed(v) for k, v in value.items()}
    if isinstance(value, list):
        return [zeroed(v) for v in value]
    return "before"


def same(a, b):
    if isinstance(a, torch.Tensor):
        bits = [t.detach().resolve_conj().contiguous().flatten().view(torch.uint8) for t in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@contextlib.contextmanager
def fails(kind, match=""):
    """dcp wraps what happens on any rank, even without others."""
    with pytest.raises(BaseException) as caught:  # CheckpointException is none of Exception
        yield
    error = caught.value
    if isinstance(error, CheckpointException):
        error = error.failures[0][0]
    assert isinstance(error, kind) and re.search(match, str(error)), repr(error)


def test_what_was_saved_comes_back(cluster, job):
    saved, loaded = state(), state(fill=0)
    dcp.save(saved, checkpoint_id=7, storage_writer=StorageWriter(job))
    dcp.load(loaded, checkpoint_id=7, storage_reader=StorageReader(job))
    assert same(saved, loaded)


def test_targets_of_every_kind(cluster, job):
    """Non-contiguous memory is read into in place; other dtypes go through a copy; nothing beside the target is touched."""
    want = torch.arange(24, dtype=torch.float32).view(4, 6)
    dcp.save({"a": want}, checkpoint_id=1, storage_writer=StorageWriter(job))
    room = torch.full((4, 12), -1.0)
    for target in (room[:, ::2], torch.zeros(6, 4).t(), torch.zeros(4, 6, dtype=torch.float64),
                   torch.zeros(4, 6, dtype=torch.bfloat16)):
        before = target.data_ptr()
        given = {"a": target}
        dcp.load(given, checkpoint_id=1, storage_reader=StorageReader(job))
        assert torch.equal(given["a"].float(), want) and given["a"].data_ptr() == before
    assert (room[:, 1::2] == -1).all()


def test_one_call_and_the_same_names(cluster, job):
    """One save with a slice for each item and one document; names and dtypes are DCP's, so other tools find them."""
    dcp.save({"m": {"w": torch.ones(2, 3)}, "n": 1}, checkpoint_id=1, storage_writer=StorageWriter(job))
    with cairn.Session(job, observer=True) as s, s.restore(1) as r:
        found = {x.name: (x.dtype, x.shape) for x in r.slices()}
    assert found.pop("m.w") == ("F32", (2, 3))
    assert found.pop("n")[0] == "BYTES"
    assert found == {".cairn/dcp/0": ("BYTES", (4096,))}


def test_steps_come_from_ids_and_paths(cluster, job):
    for given, step in ((5, 5), ("6", 6), (f"cairn://{job}/7", 7), ("/runs/3/step_8.ckpt", 8), (pathlib.Path("out/step-9"), 9)):
        assert _ids.parse(given)[1] == step and StorageWriter.validate_checkpoint_id(given)
    for given in ("latest", "", "cairn://job", "https://host/7", -1, 2**64 - 1, True, None, 1.5):
        assert not StorageReader.validate_checkpoint_id(given)
    with fails(cairn.InvalidError, "names no step"):
        StorageWriter(job).reset("no/digits/here")
    with fails(cairn.InvalidError, "which step"):
        dcp.save({"a": torch.ones(1)}, storage_writer=StorageWriter(job))
    with pytest.raises(cairn.InvalidError, match="give both"):
        StorageWriter(job, rank=1)
    with fails(cairn.InvalidError, "which job"):
        dcp.save({"a": torch.ones(1)}, checkpoint_id=1, storage_writer=StorageWriter())
    dcp.save({"a": torch.ones(1)}, checkpoint_id=f"cairn://{job}/7", storage_writer=StorageWriter())
    target = {"a": torch.zeros(1)}
    dcp.load(target, storage_reader=StorageReader(job))  # the newest
    assert target["a"] == 1


def test_loads_without_a_state_dict(cluster, job):
    saved = state()
    dcp.save(saved, checkpoint_id=1, storage_writer=StorageWriter(job))
    made = {}
    _load_state_dict(made, StorageReader(job, 1), no_dist=True, planner=_EmptyStateDictLoadPlanner())
    saved["model"]["parameter"] = saved["model"]["parameter"].detach()
    assert {k: v for k, v in made.items() if k != "model"} .keys() == {k for k in saved if k != "model"}
    assert all(same(saved["model"][k], made["model"][k]) for k in saved["model"])
    assert same(saved["optim"], made["optim"]) and made["mixed"]["deep"]["x"][0] == 1
    part = _load_state_dict_from_keys("optim", checkpoint_id=1, storage_reader=StorageReader(job))
    assert list(part) == ["optim"]


def test_partial_and_wrong_loads(cluster, job):
    dcp.save({"a": torch.ones(4), "b": torch.ones(2)}, checkpoint_id=1, storage_writer=StorageWriter(job))
    part = {"b": torch.zeros(2)}
    dcp.load(part, checkpoint_id=1, storage_reader=StorageReader(job))
    assert (part["b"] == 1).all()
    with fails(RuntimeError, "Missing key.*c"):
        dcp.load({"c": torch.zeros(1)}, checkpoint_id=1, storage_reader=StorageReader(job))
    both = {"b": torch.zeros(2), "c": torch.zeros(1)}
    dcp.load(both, checkpoint_id=1, storage_reader=StorageReader(job), planner=DefaultLoadPlanner(allow_partial_load=True))
    assert (both["b"] == 1).all() and both["c"] == 0
    with fails(ValueError, "Size mismatch.*a"):
        dcp.load({"a": torch.zeros(5)}, checkpoint_id=1, storage_reader=StorageReader(job))
    with fails(Exception, "step 2"):
        dcp.load({"a": torch.zeros(4)}, checkpoint_id=2, storage_reader=StorageReader(job))


class Custom:
    """Something that only a pickle can bring back."""

    def __init__(self, x):
        self.x = x


def test_pickles_run_only_where_asked(cluster, job):
    dcp.save({"a": torch.ones(1), "custom": Custom(3)}, checkpoint_id=1, storage_writer=StorageWriter(job))
    target = {"a": torch.zeros(1), "custom": None}
    with fails(cairn.InvalidError, '"custom" of step 1.*allow_pickle'):
        dcp.load(target, checkpoint_id=1, storage_reader=StorageReader(job))
    dcp.load(target, checkpoint_id=1, storage_reader=StorageReader(job, allow_pickle=True))
    assert target["custom"].x == 3


def test_what_cannot_be_saved_is_named(cluster, job):
    for key, value in (("sparse", torch.eye(3).to_sparse()), ("on meta", torch.empty(2, device="meta")),
                       ("quantised", torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)), (".cairn/x", torch.ones(1))):
        with fails(cairn.InvalidError, key):
            dcp.save({"ok": torch.ones(1), key: value}, checkpoint_id=1, storage_writer=StorageWriter(job))
    dcp.save({"ok": torch.ones(1)}, checkpoint_id=1, storage_writer=StorageWriter(job))  # nothing is left behind
    with fails(cairn.ExistsError):
        dcp.save({"ok": torch.ones(1)}, checkpoint_id=1, storage_writer=StorageWriter(job))


def test_a_daemon_that_does_not_run_and_a_rank_that_is_taken(cluster, job, tmp_path):
    with fails(cairn.UnavailableError, "nobody.sock"):
        dcp.save({"a": torch.ones(1)}, checkpoint_id=1, storage_writer=StorageWriter(job, socket=str(tmp_path / "nobody.sock")))
    with cairn.Session(job, arena_bytes=8 << 20, start_id="one") as session:
        with fails(cairn.ExistsError, "Checkpointer.*session="):
            dcp.save({"a": torch.ones(1)}, checkpoint_id=1, storage_writer=StorageWriter(job, start_id="one", timeout=1))
        dcp.save({"a": torch.ones(1)}, checkpoint_id=1, storage_writer=StorageWriter(job, session=session))
        assert session.latest() == 1


def test_sessions_are_shared_and_grow(cluster, job):
    """A new writer for each save, as many programs have it, uses the session that is there; a larger state a larger arena."""
    incarnations = set()
    for step, size in ((1, 10), (2, 10), (3, 3 << 20)):
        writer = StorageWriter(job)
        dcp.save({"a": torch.full((size,), float(step))}, checkpoint_id=step, storage_writer=writer)
        with cairn.Session(job, observer=True) as s, s.restore(step) as r:
            incarnations.add(r.incarnation)
    assert len(incarnations) == 1
    with fails(cairn.TooLargeError):
        close_sessions()
        dcp.save({"a": torch.ones(3 << 20)}, checkpoint_id=4, storage_writer=StorageWriter(job, arena=1 << 20))


def test_async_save_in_a_thread(cluster, job):
    saved, loaded = state(), state(fill=0)
    want = pickle.loads(pickle.dumps({k: v for k, v in saved.items() if k != "model"}))
    future = dcp.async_save({k: v for k, v in saved.items() if k != "model"}, checkpoint_id=1, storage_writer=StorageWriter(job))
    future.result(60)
    del loaded["model"]
    dcp.load(loaded, checkpoint_id=1, storage_reader=StorageReader(job))
    assert same(want, loaded)


# ---- staging into the arena ----

def staged_state():
    made = state()
    made["model"].pop("parameter")
    return made


def test_staged_tensors_alias_the_arena(cluster, job):
    """One copy, by libcairn: what stage() gives back lies in the arena, and the save that follows copies nothing. What
    training changes after async_save() has returned is not in the checkpoint."""
    writer, saved, want, loaded = StagingWriter(job), staged_state(), staged_state(), zeroed(staged_state())
    assert isinstance(writer, Protocol) and isinstance(AsyncStager(writer), Protocol) and not isinstance(StorageWriter(job), Protocol)
    future = dcp.async_save(saved, storage_writer=writer.at(1))
    for tensor in saved["model"].values():
        if not tensor.is_conj() and 0 not in tensor.stride():
            tensor.zero_()
    saved["mixed"]["deep"]["x"][1]["y"].zero_()
    saved["optim"]["betas"].append("later")
    future.result(60)
    dcp.load(loaded, checkpoint_id=1, storage_reader=StorageReader(job))
    assert same(want, loaded)

    inside = writer.at(2).stage(staged_state())
    staged = writer._staged
    ends = {address: address + piece.bytes for address, piece in zip(staged.addresses, staged.layout.pieces) if piece.bytes}
    for name, tensor in inside["model"].items():
        assert tensor.numel() == 0 or ends[tensor.data_ptr()] >= tensor.data_ptr() + tensor.nbytes, name
        assert same(tensor, want["model"][name]), name
    copied = staged.save.info()["copied_bytes"]
    dcp.save(inside, storage_writer=writer, checkpoint_id=2)
    assert copied == sum(t.nbytes for t in want["model"].values()) + 4 + 4 + 8  # two steps and mixed.deep.x.1.y
    loaded = zeroed(staged_state())
    dcp.load(loaded, checkpoint_id=2, storage_reader=StorageReader(job))
    assert same(want, loaded)


def test_staging_without_a_step_copies_elsewhere(cluster, job):
    """async_save() tells the checkpoint_id only after staging; such a save is right all the same."""
    writer, tensor, target = StagingWriter(job), torch.ones(5), {"a": torch.zeros(5)}
    future = dcp.async_save({"a": tensor}, checkpoint_id=3, storage_writer=writer)
    tensor.zero_()
    future.result(60)
    dcp.load(target, checkpoint_id=3, storage_reader=StorageReader(job))
    assert (target["a"] == 1).all()
    writer.close()


class Alone:
    """Cannot be copied."""

    def __deepcopy__(self, memo):
        raise RuntimeError("I am alone")


def test_a_value_that_cannot_be_staged(cluster, job):
    """The step is given up at once, although who keeps the error keeps all that was under way: the next one finds room."""
    writer = StagingWriter(job, arena=4 << 20, on_busy="fail")
    with pytest.raises(RuntimeError, match="I am alone") as kept:
        writer.at(1).stage({"a": torch.ones(500_000), "b": Alone()})
    dcp.async_save({"a": torch.ones(500_000)}, storage_writer=writer.at(2), no_dist=True).result(60)
    assert kept.value.__traceback__


class Scaling(DefaultSavePlanner):
    """Saves something else than what is in the state dict."""

    def transform_object(self, write_item, object):
        return super().transform_object(write_item, object * 2 if isinstance(object, torch.Tensor) else object)


def test_what_was_staged_and_is_not_written(cluster, job):
    """Another step, another tensor, another key, another process: an error that names it; then the next step is saved."""
    writer = StagingWriter(job)
    with fails(cairn.InvalidError, "step 1 of .* was staged, and step 2"):
        dcp.async_save({"a": torch.ones(2)}, checkpoint_id=2, storage_writer=writer.at(1)).result(60)
    with fails(cairn.InvalidError, 'another tensor for "a"'):
        dcp.async_save({"a": torch.ones(2)}, storage_writer=writer.at(3), planner=Scaling()).result(60)
    inside = writer.at(4).stage({"a": torch.ones(2)})
    with fails(cairn.InvalidError, '"b".*did not stage'):
        dcp.save({**inside, "b": torch.ones(1)}, storage_writer=writer)
    writer.at(5).stage({"a": torch.ones(2)})
    with pytest.raises(cairn.InvalidError, match="process mode"):
        pickle.dumps(writer)
    writer.at(6).stage({"a": torch.ones(2)})
    writer.close()  # gives it up
    dcp.async_save({"a": torch.ones(2)}, storage_writer=writer.at(7)).result(60)
    listed = json.loads(cluster.cairn("ls", job, "--json").stdout)["checkpoints"]
    assert {c["step"] for c in listed if c["state"] == "committed"} == {7}


def test_documents_are_read_with_care():
    """What a reader takes from a document it has checked: a damaged or forged one is an error and nothing else."""
    good = {"v": 1, "paths": {"a.0": ["a", 0]}, "bytes": {"b": 3}, "dtypes": {"z": "complex128"}, "requires_grad": ["a.0"]}
    read = _document.decode(json.dumps(good).encode() + b"   ", "it")
    assert read == _document.Document({"a.0": ("a", 0)}, {"b": 3}, {"z": torch.complex128}, {"a.0"})
    assert _document.decode(read.encode(), "it") == read
    for change in ({"paths": {"a": ["a", -1]}}, {"paths": {"a": []}}, {"paths": {"a": [True]}}, {"paths": 3},
                   {"bytes": {"b": -1}}, {"bytes": {"b": "1"}}, {"dtypes": {"z": "load"}}, {"dtypes": {"z": 3}}, {"requires_grad": [1]}, {"v": None}):
        with fails(cairn.Error, "it"):
            _document.decode(json.dumps({**good, **change}).encode(), "it")
    for data in (b"", b"[]", b"\xff", b"[" * 100000, b"{}"):
        with fails(cairn.CorruptError, "it"):
            _document.decode(data, "it")


def test_memory_helpers():
    t = torch.arange(24.0).view(4, 6)
    for tensor, expected in ((t, True), (t.t(), True), (t[:, ::2], True), (t[0].expand(3, 6), False),
                             (t.unfold(1, 2, 1), False), (torch.tensor(1.0), True), (torch.ones(2, dtype=torch.complex64).conj(), False)):
        assert _memory.is_writable_in_place(tensor) is expected
    seen = _memory.over(t.data_ptr(), torch.float32, (6, 4), owner=t)
    seen[0, 0] = 99
    assert t[0, 0] == 99 and _memory.over(0, torch.float32, (0, 3), None).shape == (0, 3)


def test_on_two_ranks(cluster, job):
    """Sharded, replicated and rank-only entries, a subgroup of requests, process mode, and a failing rank; see dcp_ranks.py."""
    assert run_forked(2, dcp_ranks.two_ranks, {"job": job}, timeout=110) == ["ok", "ok"]


def test_starts_of_a_job_resume_where_the_last_one_was(cluster, job):
    """Both ranks find the newest step without being told; the arena that then grows for the first save does not forget that
    this start has loaded."""
    for step, size in ((1, 1000), (2, 1000000)):
        found = run_forked(2, dcp_ranks.start_again, {"job": job, "step": step, "size": size}, timeout=60)
        assert found == [None if step == 1 else 1] * 2
