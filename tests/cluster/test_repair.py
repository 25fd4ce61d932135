#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What peers lose is made again, and the catalog comes back from the peers alone.

Catches: a damaged fragment that is served or not noticed, a repair that puts two fragments of a stripe on one peer or counts what is not
durable, parity that is made again with other bytes, a catalog that lacks a checkpoint or takes one for committed that was not, a new start
whose incarnation was used before, a deletion that a strange metadata engine asks for."""
import argparse
import json
import pathlib
import shutil
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "lib"))
from cluster import Cluster, wait_until  # noqa: E402

SIZE = ["--bytes", str(24 << 20)]
BLOCK = 4096


def save(c, count, *args):
    out = c.client("save", *SIZE, "--count", count, *args)[1]
    steps = [int(line.split()[1]) for line in out.splitlines() if line.startswith("committed ")]
    assert len(steps) == count, out
    return steps


def flip(path, at):
    """Turns one bit of a stored file."""
    with open(path, "r+b") as f:
        f.seek(at)
        byte = f.read(1)
        f.seek(at)
        f.write(bytes([byte[0] ^ 0x10]))


def data_files(peer):
    """Those with fragments of chunks, not copies of decisions alone."""
    return [f for f in peer.stream_files() if f.stat().st_size > 2 << 20]


def verify(c, step):
    return c.query("check", "--step", step, "--job", "test")


def restart_node(c, count=None):
    """What the arena keeps must not help a restore."""
    c.node.kill()
    c.node.start()
    c.wait_peers_up(count)


def loses_and_heals(c):
    """Fragments deleted on one peer and flipped on another are made again on what is there; then any two others may go."""
    save(c, 2)
    c.peers[0].stop()
    for f in c.peers[0].stream_files():
        f.unlink()
    c.peers[0].start()
    restart_node(c, 6)
    flip(data_files(c.peers[1])[0], BLOCK + BLOCK + 77)  # the first fragment's payload
    before = verify(c, 1), verify(c, 2)
    assert all(r["missing"] > 0 and r["repairable"] for r in before), before
    assert sum(r["corrupt"] for r in before) == 1, before
    out = c.tool("repair", "test")
    assert out["repaired"] == sum(r["missing"] + r["corrupt"] for r in before) and out["lost_chunks"] == 0, (out, before)
    assert out["unplaced"] == 0 and out["copies_missing"] == 0, out
    assert [k["step"] for k in out["checkpoints"]] == [2, 1], out  # the newest first
    for step in (1, 2):
        report = verify(c, step)
        assert report["ok"] == report["fragments"] > 0, report
    again = c.tool("repair", "test", "2")
    assert again["repaired"] == 0 and again["missing"] == 0 and len(again["checkpoints"]) == 1, again
    for p in c.peers[2:4]:  # m of those that had been well all the time
        p.kill()
    restart_node(c, 4)
    for step in (1, 2):
        assert f"verified {step}" in c.client("verify", *SIZE, "--step", step)[1]
    for p in c.peers[2:4]:
        p.start()
    c.wait_peers_up(6)


def scrub(c, *args):
    """Per peer; a damaged fragment makes the exit code 5."""
    code, out, err = c.run([c.build / "client" / "tool" / "cairn", "--json", "scrub", *args], check=False)
    answer = json.loads(out)
    assert code == (5 if answer["bad"] else 0) and answer["complete"], (code, out, err)
    return {p["peer"]: p for p in answer["peers"]}


def scrub_finds(c):
    """A bit flipped in a payload and one in a header: both are found, the records behind the header are not lost with it."""
    before = scrub(c)
    files = data_files(c.peers[4])
    flip(files[0], BLOCK + 100)  # the first record's header
    flip(files[1], files[1].stat().st_size - BLOCK - 1)
    c.peers[4].stop()
    c.peers[4].start()
    c.wait_peers_up(6)
    after = scrub(c)
    found = {p: after[p]["bad"] - before[p]["bad"] for p in after}
    assert found == {p.name: 2 if p is c.peers[4] else 0 for p in c.peers}, (before, after)
    assert all(after[p]["fragments"] == before[p]["fragments"] > 0 for p in after), (before, after)
    assert "scrub:" in c.peers[4].tail(200) and "test/" in c.peers[4].tail(200)
    out = c.tool("repair", "test")
    assert out["repaired"] + out["copies_added"] == 2 and out["lost_chunks"] == 0, out
    assert all(verify(c, s)["ok"] == verify(c, s)["fragments"] for s in (1, 2))


def same(a, b):
    """The same checkpoints; who resumes from which is known to the engine alone."""
    return all({**x, "resume": None} == {**y, "resume": None} for x, y in zip(a["checkpoints"], b["checkpoints"], strict=True))


def in_state(c, state):
    return [k["step"] for k in c.query("list", "--job", "test")["checkpoints"] if k["state"] == state]


def catalog_lost(c):
    """Without its database nothing is known; the peers refuse what is new until the catalog was written again from their files."""
    listed = c.query("list", "--job", "test")
    incarnation = max(k["incarnation"] for k in listed["checkpoints"])
    assert c.node.stop() == 0
    for p in c.peers:
        assert p.stop() == 0
    for f in c.dir.glob("meta.db*"):
        f.unlink()
    c.start_all()
    assert c.tool("ls")["jobs"] == []
    files = [f for p in c.peers for f in p.stream_files()]
    # A start that gets the old numbers again, and whose step is aborted: what has these numbers on the peers is another checkpoint.
    t = c.spawn([c.build / "tests/cluster/cluster-client", "save", *SIZE, "--count", 1, "--first", 1, "--start-id", "amnesia"])
    wait_until("the step to be under way", lambda: in_state(c, "undecided") or in_state(c, "aborted"), 20)
    c.node.kill()
    t.kill()
    t.wait()
    c.node.start()
    c.wait_peers_up(6)
    c.client("save", *SIZE, "--count", 0, "--start-id", "sweeper")
    wait_until("the step to be aborted", lambda: in_state(c, "aborted"), 20)
    out = c.client("save", *SIZE, "--count", 1, "--job", "refused", "--timeout", 3, check=False)[1]
    assert "committed 1" not in out, out
    assert any("cairn rebuild" in p.tail(200) for p in c.peers)
    c.peers[3].stop()
    c.peers[3].start()  # looks through what it has
    wait_until("a deletion to be refused", lambda: "is not deleted" in c.peers[3].tail(200), 30)
    c.wait_peers_up(6)
    assert set(files) <= {f for p in c.peers for f in p.stream_files()}  # an absent key deletes nothing
    out = c.tool("rebuild")
    assert out["written"] == len(listed["checkpoints"]) and out["complete"] and out["accepted"] == len(c.peers), out
    assert out["undecided"] == 0, out
    again = c.query("list", "--job", "test")
    assert same(again, listed), (again, listed)
    restart_node(c, 6)
    for k in again["checkpoints"]:
        assert f"verified {k['step']}" in c.client("verify", *SIZE, "--step", k["step"])[1]
    out = c.client("save", *SIZE, "--count", 1, "--start-id", "after")[1]
    assert int(out.split("opened ")[1].split()[0]) > incarnation and "committed" in out, (incarnation, out)
    assert c.tool("rebuild")["written"] == 0
    # What an older incarnation committed is repaired too, though the peers refuse its writes by now.
    old = [f for f in c.peers[5].stream_files() if f.parent.name == "test" and f in files]
    c.peers[5].stop()
    for f in old:
        f.unlink()
    c.peers[5].start()
    c.wait_peers_up(6)
    out = c.tool("repair", "test", "1")
    assert old and out["repaired"] > 0 and out["unplaced"] == 0, out
    report = verify(c, 1)
    assert report["ok"] == report["fragments"] > 0, report


def catalog_from_a_copy(c):
    """A database that was put back from an old copy has the right id and gives out numbers again: the peers refuse it as well."""
    assert c.node.stop() == 0
    for p in c.peers:
        assert p.stop() == 0
    shutil.copy(c.dir / "meta.db", c.dir / "copy")
    assert not (c.dir / "meta.db-wal").exists()  # all of it is in the one file
    c.start_all()
    out = c.client("save", *SIZE, "--count", 1, "--start-id", "forgotten")[1]
    incarnation = int(out.split("opened ")[1].split()[0])
    assert "committed" in out
    listed = c.query("list", "--job", "test")
    assert c.node.stop() == 0
    for p in c.peers:
        assert p.stop() == 0
    shutil.copy(c.dir / "copy", c.dir / "meta.db")
    c.start_all()
    assert len(c.query("list", "--job", "test")["checkpoints"]) < len(listed["checkpoints"])
    assert all("stores a higher incarnation" in p.tail(30) for p in c.peers)
    assert c.tool("rebuild")["written"] == 1
    again = c.query("list", "--job", "test")
    assert same(again, listed), (again, listed)
    out = c.client("save", *SIZE, "--count", 1, "--start-id", "later")[1]
    assert int(out.split("opened ")[1].split()[0]) > incarnation and "committed" in out and "not committed" not in out, out


def by_itself(build):
    """A peer that stays away is made up for, by the node that coordinates the job, without being asked."""
    with Cluster(build, peers=5, node__repair_every_s=1) as c:
        for p in c.peers[:4]:
            p.start()
        c.node.start()
        c.wait_peers_up(4)  # stripes of 2+2
        t = c.spawn([c.build / "tests/cluster/cluster-client", "save", *SIZE, "--count", 1000])
        wait_until("a commit", lambda: t.stdout.readline().startswith("committed 1"), 30)
        t.send_signal(signal.SIGSTOP)  # a member that does nothing: its node goes on coordinating
        c.peers[0].kill()
        c.peers[4].start()
        wait_until("the first checkpoint to be whole on four others",
                   lambda: (r := verify(c, 1)) and r["ok"] == r["fragments"] > 0, 60)
        t.kill()
        t.wait()
        assert c.node.stop() == 0, c.node.tail()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    build = parser.parse_args().build
    with Cluster(build, peers=6) as c:
        c.start_all()
        for day in (loses_and_heals, scrub_finds, catalog_lost, catalog_from_a_copy):
            day(c)
            print(f"ok {day.__name__}")
        assert c.node.stop() == 0, c.node.tail()
        for p in c.peers:
            assert p.stop() == 0, p.tail()
    by_itself(build)
    print("1 passed, 0 failed")


main()
