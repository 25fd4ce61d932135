#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What is deleted and what is not: files and records of a deleted checkpoint go everywhere in the end, whoever dies meanwhile; the newest
one, a pinned one and one that is being restored stay.

Each function says what it catches."""
import argparse
import pathlib
import re
import sqlite3
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "lib"))
from cluster import Cluster, wait_until  # noqa: E402

ONE = ["--bytes", str(6 << 20)]


def save(c, job, count, *args):
    out = c.client("save", *ONE, "--job", job, "--count", count, *args)[1]
    return [int(line.split()[1]) for line in out.splitlines() if line.startswith("committed ")]


def committed(c, job):
    listed = c.query("list", "--job", job)
    return [k["step"] for k in listed["checkpoints"] if k["state"] == "committed"]


def deleting(c, job):
    return [k["step"] for k in c.query("list", "--job", job)["deleting"]]


def steps_on(peer, job):
    return {int(f.name.split(".")[0]) for f in peer.stream_files() if f.parent.name == job}


def steps_on_peers(c, job):
    return set().union(*(steps_on(p, job) for p in c.peers))


def recorded(c, job):
    """Steps of which the metadata knows anything."""
    with sqlite3.connect(f"file:{c.dir}/meta.db?mode=ro", uri=True, timeout=10) as db:
        keys = [key for (key,) in db.execute("SELECT key FROM kv")]
    return {int(m.group(1)) for m in (re.match(rf"cairn/v1/jobs/{job}/ckpt/(\d+)\.", k) for k in keys) if m}


def gone(c, job, left):
    """Files and records of these steps only are left."""
    wait_until(f"files of {left} only", lambda: steps_on_peers(c, job) == set(left), 30)
    wait_until(f"records of {left} only", lambda: recorded(c, job) == set(left), 30)
    assert deleting(c, job) == []
    assert committed(c, job) == sorted(left)


def refused(c, *args, says, code):
    got, out, err = c.run([c.build / "client" / "tool" / "cairn", *args], check=False)
    assert got == code and re.search(says, err), (args, got, out, err)


def a_rule(c):
    """Rules combine; what they keep can be restored (catches: a rule that deletes too much, or whose deletions free nothing)."""
    assert save(c, "rule", 1) == [1]
    assert c.tool("retain", "rule", "last=2", "every=3")["retention"] == "last=2 every=3"
    assert save(c, "rule", 6, "--start-id", "second") == [2, 3, 4, 5, 6, 7]
    gone(c, "rule", [1, 3, 6, 7])  # 1: the job resumes from it
    assert c.query("list", "--job", "rule")["retention"] == "last=2 every=3"
    for step in (3, 6, 7):
        assert f"verified {step}" in c.client("verify", *ONE, "--job", "rule", "--step", step)[1]
    assert [k["step"] for k in c.query("list", "--job", "rule")["checkpoints"] if k["resume"]] == [1]
    refused(c, "show", "rule", "2", says="has not committed step 2", code=3)
    refused(c, "retain", "rule", "last=0", says="last=0", code=1)
    refused(c, "retain", "nobody", "last=1", says="no job nobody", code=3)


def what_is_held(c):
    """A pin, a reader, the newest one (catches: a deletion under somebody's hands)."""
    assert save(c, "held", 4, "--first", 1) == [1, 2, 3, 4]
    refused(c, "delete", "held", "4", says="newest", code=1)
    refused(c, "delete", "held", "latest", says="newest", code=1)
    refused(c, "delete", "held", "9", says="not committed", code=3)
    refused(c, "unpin", "held", "1", says='no pin "pin"', code=3)
    assert c.tool("pin", "held", "1", "paper")["label"] == "paper"
    refused(c, "delete", "held", "1", says='pin "paper"', code=1)
    reader = c.spawn([c.build / "tests/cluster/cluster-client", "hold", *ONE, "--job", "held", "--step", 2], stdin=subprocess.PIPE)
    assert reader.stdout.readline() == "holding 2\n"
    refused(c, "delete", "held", "2", says="a restore or repair on node n1", code=4)
    assert c.tool("retain", "held", "last=1")["retention"] == "last=1"
    wait_until("the rule to be applied", lambda: committed(c, "held") == [1, 2, 4], 20)
    assert {k["step"]: (k["pins"], k["readers"]) for k in c.query("list", "--job", "held")["checkpoints"]} == {1: (1, 0), 2: (0, 1), 4: (0, 0)}
    reader.communicate("", timeout=30)
    wait_until("the reader's to go", lambda: committed(c, "held") == [1, 4], 20)
    assert "verified 1" in c.client("verify", *ONE, "--job", "held", "--step", 1)[1]
    c.tool("unpin", "held", "1", "paper")
    gone(c, "held", [4])


def a_reader_that_dies(c):
    """Killed, and its daemon with it: neither holds for ever."""
    assert save(c, "dies", 3, "--first", 1) == [1, 2, 3]
    reader = c.spawn([c.build / "tests/cluster/cluster-client", "hold", *ONE, "--job", "dies", "--step", 1], stdin=subprocess.PIPE)
    assert reader.stdout.readline() == "holding 1\n"
    reader.kill()
    reader.wait()
    wait_until("its hold to go", lambda: c.tool("delete", "dies", "1", check=False), 20)
    reader = c.spawn([c.build / "tests/cluster/cluster-client", "hold", *ONE, "--job", "dies", "--step", 2], stdin=subprocess.PIPE)
    assert reader.stdout.readline() == "holding 2\n"
    c.node.kill()
    reader.kill()
    reader.wait()
    c.node.start()
    c.wait_peers_up(6)
    wait_until("the dead daemon's hold to go", lambda: c.tool("delete", "dies", "2", check=False), 20)
    gone(c, "dies", [3])


def a_peer_that_is_down(c):
    """It deletes when it is back, and until then the tombstone stays (catches: files that nobody will ever delete)."""
    assert save(c, "down", 2, "--first", 1) == [1, 2]
    away = c.peers[5]
    assert steps_on(away, "down") == {1, 2}
    away.kill()
    wait_until("its record to go", lambda: [p for p in c.query("status")["peers"] if p["peer"] == "p6"][0]["state"] == "gone", 30)
    assert c.tool("delete", "down", "1")["step"] == 1
    assert committed(c, "down") == [2]
    wait_until("the others to delete", lambda: set().union(*(steps_on(p, "down") for p in c.peers[:5])) == {2}, 30)
    assert deleting(c, "down") == [1] and recorded(c, "down") == {1, 2} and steps_on(away, "down") == {1, 2}
    refused(c, "show", "down", "1", says="was deleted", code=3)
    away.start()
    c.wait_peers_up(6)
    gone(c, "down", [2])


def a_crash_in_between(c):
    """The daemon dies after the tombstone and before any peer heard of it (catches: a half-deleted checkpoint that is listed, or stays)."""
    assert save(c, "crash", 3, "--first", 1) == [1, 2, 3]
    for p in c.peers:
        p.kill()
    assert c.tool("delete", "crash", "2")["step"] == 2
    c.node.kill()
    assert steps_on_peers(c, "crash") == {1, 2, 3}
    c.node.start()
    assert committed(c, "crash") == [1, 3] and deleting(c, "crash") == [2]
    for p in c.peers:
        p.start()
    c.wait_peers_up(6)
    gone(c, "crash", [1, 3])
    assert "verified 1" in c.client("verify", *ONE, "--job", "crash", "--step", 1)[1]


def killed_at_any_moment(c):
    """Saves under last=1 while the daemon is killed again and again: what is listed can be restored, nothing else is left."""
    assert save(c, "storm", 1) == [1]
    c.tool("retain", "storm", "last=1")
    for i in range(4):
        trainer = c.spawn([c.build / "tests/cluster/cluster-client", "save", *ONE, "--job", "storm", "--count", 1000, "--timeout", 3000,
                           "--start-id", f"s{i}"])
        wait_until("a commit", lambda: trainer.stdout.readline().startswith("committed"), 30)
        time.sleep(0.07 * i)
        c.node.kill()
        trainer.kill()
        trainer.wait()
        c.node.start()
        c.wait_peers_up(6)
    left = wait_until("deletions to end", lambda: deleting(c, "storm") == [] and committed(c, "storm"), 30)
    for step in left:
        assert f"verified {step}" in c.client("verify", *ONE, "--job", "storm", "--step", step)[1]
    wait_until("files without records to go", lambda: steps_on_peers(c, "storm") <= recorded(c, "storm"), 30)


DAYS = [a_rule, what_is_held, a_reader_that_dies, a_peer_that_is_down, a_crash_in_between, killed_at_any_moment]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    parser.add_argument("--only", help="one function's name")
    a = parser.parse_args()
    with Cluster(a.build, peers=6, node__backoff_ms=200, retention__interval_s=1) as c:
        c.start_all()
        for day in DAYS:
            if a.only in (None, day.__name__):
                begin = time.monotonic()
                day(c)
                print(f"ok {day.__name__} {time.monotonic() - begin:.1f} s", flush=True)
        assert c.node.stop() == 0, c.node.tail()
    print(f"{len(DAYS) if not a.only else 1} passed, 0 failed")


main()
