#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the daemon says of tensors' numbers: NaN and Inf that were planted are counted and passed over by latest-finite, ranks that hold other
bytes than the others are named with their tensors, and by policy the checkpoint is refused.

Catches: a number that is counted twice when a daemon was killed and another goes on, one that depends on how parts were cut or encoded, a
digest that sees other bytes than were stored, a checkpoint with NaN that is resumed from, a rank that is blamed for what another did."""
import argparse
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "lib"))
from cluster import Cluster, wait_until  # noqa: E402

BAD = {"own.1": (3, 2), "own.1.small": (1, 0)}  # what --nan 1 plants: NaN, Inf


def save(c, job, world, step, *args, code=0):
    got, out, err = c.run([c.build / "tests/cluster/cluster-numerics", "--job", job, "--world", world, "--step", step, *args], check=False)
    assert got == code, out + err
    return out


def numbers(c, job, step):
    """Of each tensor that has any: how many NaN and Inf; and the whole answer."""
    a = c.tool("show", job, str(step))
    per = {t["name"]: (sum(s["nan"] for s in t["slices"]), sum(s["inf"] for s in t["slices"])) for t in a["tensors"]}
    return {name: n for name, n in per.items() if n != (0, 0)}, a


def digests(a):
    return {(t["name"], s["rank"]): s["digest"] for t in a["tensors"] for s in t["slices"]}


def text(c, *args, code=0):
    got, out, err = c.run([c.build / "client/tool/cairn", *args], check=False)
    assert got == code, (got, out, err)
    return out + err


def counted(c):
    """Step 1 is finite, step 2 is not: what is shown of them, and what latest-finite takes."""
    save(c, "watch", 3, 1)
    save(c, "watch", 3, 2, "--nan", 1)
    bad, a = numbers(c, "watch", 2)
    assert bad == BAD and a["nonfinite"] == 6 and a["common_mismatch"] is None, (bad, a["nonfinite"], a["common_mismatch"])
    assert numbers(c, "watch", 1)[0] == {}
    assert {k["step"]: k["nonfinite"] for k in c.query("list", "--job", "watch")["checkpoints"]} == {1: 0, 2: 6}
    shown = text(c, "show", "watch", "2")
    assert "own.1.small" in shown.split("NOT FINITE")[1] and "own.0" not in shown.split("NOT FINITE")[1] and "NaN and Inf: 6" in shown, shown
    assert c.tool("show", "watch", "latest-finite")["step"] == 1 and c.tool("show", "watch", "latest")["step"] == 2
    for verb in ("delete", "unpin", "repair"):  # what it means changes with the next save
        code, _, err = c.run([c.build / "client/tool/cairn", verb, "watch", "latest-finite"], check=False)
        assert code == 2 and "not taken here" in err, (verb, code, err)
    restored = c.tool("restore", "watch", "latest-finite", "--to", str(c.dir / "out"))
    assert restored["step"] == 1, restored
    out = c.run([c.build / "tests/cluster/cluster-numerics", "--job", "watch", "--world", 3, "--restored", "latest-finite"])[1]
    assert out == "opened 1\n", out
    return digests(a)


def told_apart(c):
    """A flipped bit, of three ranks the minority, of two either."""
    save(c, "three", 3, 1)
    save(c, "three", 3, 2, "--flip", 1)
    m = numbers(c, "three", 2)[1]["common_mismatch"]
    assert (m["ranks"], m["majority"], m["tensors"]) == ([1], True, ["shared.bias", "shared.weight"]), m
    assert 'rank 1 holds other bytes than 2 other ranks of tensors that they have in common: "shared.bias", "shared.weight"' in c.node.tail()
    assert "SAVED ALTHOUGH rank 1" in text(c, "show", "three", "2")
    save(c, "two", 2, 1, "--flip", 1)
    m = numbers(c, "two", 1)[1]["common_mismatch"]
    assert (m["ranks"], m["majority"]) == ([0, 1], False), m
    status = {j["job"]: j["common_mismatches"] for j in c.query("status")["jobs"]}
    assert status == {"watch": 0, "three": 1, "two": 1}, status


def killed_between(c, before):
    """The daemon dies while the snapshot is drained, and the next one begins again: counts and digests are those of the same step saved at once."""
    for p in c.peers:
        p.freeze()
    client = c.spawn([c.build / "tests/cluster/cluster-numerics", "--job", "again", "--world", "3", "--step", "2", "--nan", "1"])
    assert client.stdout.readline() == "sealed 2\n"
    wait_until("parts to be taken", lambda: any(f["taken_parts"] for f in c.query("status")["flushes"]))
    c.node.kill()
    for p in c.peers:
        p.thaw()
    c.node.start()
    out, err = client.communicate(timeout=60)
    assert "committed 2" in out, out + err
    bad, a = numbers(c, "again", 2)
    assert bad == BAD, bad
    assert digests(a) == before


def refused(c):
    """By policy: no checkpoint, and every rank is told who and what."""
    c.node.stop()
    c.node.options["node"]["common_mismatch"] = "fail"
    c.node.write_config()
    c.node.start()
    c.wait_peers_up()
    out = save(c, "fail", 3, 1, "--flip", 2, code=1)
    assert 'failed 1 aborted' in out and "rank 2 holds other bytes" in out and '"shared.weight"' in out, out
    assert text(c, "show", "fail", "latest", code=3)
    assert "committed 2" in save(c, "fail", 3, 2)


def not_counted(c):
    """Without the watch nothing is said, and nothing is taken for finite."""
    c.node.stop()
    c.node.options["node"]["numerics"] = 0
    c.node.write_config()
    c.node.start()
    c.wait_peers_up()
    save(c, "blind", 2, 1, "--nan", 1, "--flip", 1)
    a = c.tool("show", "blind", "1")
    assert a["nonfinite"] is None and all(s["nan"] is None and s["digest"] is None for t in a["tensors"] for s in t["slices"]), json.dumps(a)
    assert "it is known whether they have NaN" in text(c, "show", "blind", "latest-finite", code=3)
    save(c, "watch", 3, 3, "--start-id", "t")  # skipped: older ones have counts
    assert c.tool("show", "watch", "latest-finite")["step"] == 1


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    options = parser.parse_args()
    with Cluster(options.build, peers=3) as c:
        c.start_all()
        before = counted(c)
        told_apart(c)
        killed_between(c, before)
        refused(c)
        not_counted(c)


main()
