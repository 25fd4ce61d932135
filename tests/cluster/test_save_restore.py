#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The main job: saved by two ranks, everything on the node and two of six peers killed, restored bit for bit.

Catches: a commit before all fragments were synced, a restore that needs the arena, parity that does not rebuild, a slice that lands in
the wrong place when another number of ranks reads."""
import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "lib"))
from cluster import Cluster  # noqa: E402

SIZE = ["--bytes", str(24 << 20), "--world", "2"]


def save(c, start, count, first=0):
    args = ["save", *SIZE, "--start-id", start, "--count", count] + (["--first", first] if first else [])
    ranks = [c.spawn([c.build / "tests" / "cluster" / "cluster-client", *args, "--rank", r]) for r in (0, 1)]
    outputs = []
    for r in ranks:
        out, err = r.communicate(timeout=60)
        assert r.returncode == 0, out + err
        outputs.append(out)
    return outputs


def committed(output):
    return [int(line.split()[1]) for line in output.splitlines() if line.startswith("committed ")]


def replicas(c):
    """One name and one place, saved by both ranks with other bytes: each rank reads its own, an observer the lowest's."""
    args = ["--bytes", str(1 << 20), "--world", "2", "--job", "replicas", "--replicated"]
    ranks = [c.spawn([c.build / "tests" / "cluster" / "cluster-client", "save", *args, "--rank", r]) for r in (0, 1)]
    for r in ranks:
        out, err = r.communicate(timeout=60)
        assert committed(out) == [1], out + err
    assert "verified 1" in c.client("verify", *args)[1]
    for r in (0, 1):
        assert "verified 1" in c.client("verify", *args, "--as-rank", "--rank", r, "--start-id", "second")[1]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    with Cluster(parser.parse_args().build, peers=6) as c:
        c.start_all()
        replicas(c)
        outputs = save(c, "first", 3)
        assert all(committed(o) == [1, 2, 3] for o in outputs), outputs
        assert "verified 3" in c.client("verify", *SIZE)[1]  # from the arena
        c.wait_complete()  # full: any two of six may be lost
        c.node.kill()
        for p in c.peers[:2]:
            p.kill()
        c.node.start()
        c.wait_peers_up(4)
        for step in (1, 2, 3):  # from four of six fragments
            assert f"verified {step}" in c.client("verify", *SIZE, "--step", step)[1]
        listed = c.query("list")
        assert [k["step"] for k in listed["checkpoints"] if k["state"] == "committed"] == [1, 2, 3], listed
        outputs = save(c, "second", 2)  # resumes after 3 with four peers
        assert all("opened 2 latest 3" in o for o in outputs), outputs
        assert all(committed(o) == [4, 5] for o in outputs), outputs
        assert "verified 5" in c.client("verify", *SIZE)[1]
        c.wait_complete()
        for p in c.peers[:2]:
            p.start()
        c.wait_peers_up(6)
        report = c.query("check", "--step", "5")
        assert report["fragments"] == report["ok"] and report["fragments"] > 0, report
        assert c.node.stop() == 0
        for p in c.peers:
            assert p.stop() == 0, p.tail()
    print("1 passed, 0 failed")


main()
