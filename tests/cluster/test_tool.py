#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The tool as a person and as a script use it: tables, JSON, exit codes, safetensors that a reader of the published format accepts, whole
or in shards with an index, and back into a job.

Catches: a hole or a wrong offset in a file, slices merged in the wrong place, an exit code that says ok for a damaged checkpoint."""
import argparse
import json
import os
import pathlib
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "lib"))
from cluster import Cluster  # noqa: E402

SIZES = {"BF16": 2, "F32": 4, "I64": 8, "BOOL": 1, "F8_E4M3": 1, "C64": 8, "U8": 1}


def read_safetensors(path):
    """Checks the format's rules; returns (metadata, {name: (dtype, shape, bytes)})."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    assert data[8:9] == b"{" and (8 + length) % 8 == 0
    header = json.loads(data[8:8 + length])
    metadata = header.pop("__metadata__")
    assert all(isinstance(v, str) for v in metadata.values())
    body, end, tensors = data[8 + length:], 0, {}
    for name, t in sorted(header.items(), key=lambda x: x[1]["data_offsets"]):
        begin, stop = t["data_offsets"]
        count = 1
        for d in t["shape"]:
            count *= d
        assert begin == end and stop - begin == count * SIZES[t["dtype"]], (name, t)
        assert begin % SIZES[t["dtype"]] == 0, f"{name} is not aligned: a reader that maps the file could not view it"
        end = stop
        tensors[name] = (t["dtype"], t["shape"], body[begin:stop])
    assert end == len(body), "holes or a tail"
    return metadata, tensors


def check_shards_and_import(c, tool, out, merged):
    """Hugging Face's way of cutting a model into files, and back into a job: no torch is needed for that."""
    shards = out / "shards"
    files = [pathlib.Path(f["path"]) for f in c.tool("restore", "test", 2, "--to", shards, "--merge", "--shard-size", "10MB")["files"]]
    index = json.loads(files[-1].read_text())
    assert len(files) > 3 and files[-1].name == "model.safetensors.index.json"
    read = {f.name: read_safetensors(f)[1] for f in files[:-1]}
    assert {n: f for f, tensors in read.items() for n in tensors} == index["weight_map"]
    assert {n: t for tensors in read.values() for n, t in tensors.items()} == merged
    assert index["metadata"]["total_size"] == sum(len(t[2]) for t in merged.values())
    if "CAIRN_SANITIZE:STRING=\n" not in (c.build / "CMakeCache.txt").read_text():
        return  # no Python can load that libcairn
    root = pathlib.Path(__file__).resolve().parents[2]
    os.environ.update(CAIRN_PYTHON=sys.executable, PYTHONPATH=str(root / "client/python/src"), CAIRN_LIBRARY=str(c.build / "client/libcairn.so.0"))
    taken = c.tool("import", shards, "taken", "--arena", "8M")
    assert taken["step"] == 2 and taken["world_size"] > 4 and taken["tensors"] == len(merged), taken
    c.run([*tool, "restore", "taken", "--to", out / "again", "--merge", "--only", "layer.", "--strip", "layer"])
    again = read_safetensors(out / "again" / "model.safetensors")[1]
    assert again == {n[len("layer."):]: t for n, t in merged.items() if n.startswith("layer.")}
    files[0].write_bytes(files[0].read_bytes()[:-1])
    for want, *command in [(5, "import", shards, "broken"), (3, "import", "/nonexistent", "broken"), (3, "restore", "taken", "--to", out / "x", "--merge", "--only", "none"),
                           (2, "restore", "taken", "--to", out, "--shard-size", "1G"), (2, "import", shards, "broken", "--arena", "much"), (2, "restore", "taken", "--to", out, "--format", "zip")]:
        code, _, said = c.run([*tool, *command], check=False)
        assert code == want and "cairn: " in said + "cairn: " * (want == 2), (command, code, said)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    with Cluster(parser.parse_args().build, peers=3) as c:
        c.start_all()
        tool = [c.build / "client" / "tool" / "cairn"]
        args = ["save", "--bytes", 48 << 20, "--world", 2, "--start-id", "a", "--count", 2]
        ranks = [c.spawn([c.build / "tests/cluster/cluster-client", *args, "--rank", r]) for r in (0, 1)]
        for r in ranks:
            assert "committed 2" in r.communicate(timeout=60)[0]
        assert "PEER" in c.run([*tool, "status"])[1] and "test" in c.run([*tool, "ls"])[1]
        assert len(c.tool("ls", "test")["checkpoints"]) == 2
        assert "2+1" in c.run([*tool, "show", "test", 2])[1]
        out = c.dir / "out"
        c.run([*tool, "restore", "test", "--to", out])
        c.run([*tool, "restore", "test", 2, "--to", out, "--merge"])
        metadata, merged = read_safetensors(out / "model.safetensors")
        assert metadata["cairn.step"] == "2" and merged["layer.0.weight"][1][1] == 16
        parts = [read_safetensors(out / f"rank-{r:05}.safetensors")[1] for r in (0, 1)]
        for name, (dtype, shape, data) in merged.items():  # ranks hold rows: one after the other they are the tensor
            assert data == b"".join(p[name][2] for p in parts if name in p), name
        check_shards_and_import(c, tool, out, merged)
        for want, *command in [(1, "restore", "test", "--to", out), (2, "frob"), (2, "show", "test"), (2, "restore", "test", "--to", out, "--merge", "--rank", 0), (3, "show", "test", 99),
                               (3, "ls", "nothing"), (3, "restore", "nothing", "--to", out), (4, "status", "--socket", "/nonexistent")]:
            code = c.run([*tool, *command], check=False)[0]
            assert code == want, (command, code, want)
        for says, *command in [('ls: no checkpoint of a job nothing is known: "cairn ls" names', "ls", "nothing"), ("show: job test has not committed step 99", "show", "test", 99),
                               ("pin: the label", "pin", "test", 2, "a b"), ('ls: the job "no..." has byte', "ls", "no/job"),
                               ("restore: open step 9 of job test: job test has not", "restore", "test", 9, "--to", out)]:
            _, table, said = c.run([*tool, *command], check=False)
            assert said.startswith(f"cairn: {says}") and not table, said  # no word of the protocol
        assert len(c.tool("restore", "test", "--to", out, "--force")["files"]) == 2
        failed = json.loads(c.run([*tool, "show", "test", 99, "--json"], check=False)[1])
        assert failed["error"]["code"] == "not_found" and "99" in failed["error"]["message"], failed
        assert c.run([*tool, "verify", "test"])[0] == 0
        c.peers[0].stop()
        streams = [f for f in c.peers[0].stream_files() if "test" in f.parts]
        os.unlink(max(streams, key=lambda f: f.stat().st_size))  # with data, not a copy of a decision alone
        c.peers[0].start()
        c.wait_peers_up(3)
        codes = [c.run([*tool, "verify", "test", step], check=False)[0] for step in (1, 2)]
        assert sorted(codes) == [0, 5], codes
        assert not list(out.glob("*.part"))
    print("1 passed, 0 failed")


main()
