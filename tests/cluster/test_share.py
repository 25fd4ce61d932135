#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Chunks that did not change refer to an older checkpoint's: they are stored once, restored bit for bit, kept as long as anything refers to them, and
what is damaged of them is found and mended.

Each function is one day of it and says what it catches."""
import argparse
import json
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "lib"))
from cluster import Cluster, wait_until  # noqa: E402
from rot import damage, zero  # noqa: E402

PARTS, FROZEN = 24, 12
LIMIT = 3  # so many checkpoints share with one


class Rank:
    def __init__(self, c, job, frozen=FROZEN, rank=0, world=1, node=None):
        self.c, self.job = c, job
        self.child = c.spawn([c.build / "tests/cluster/cluster-filling", job, PARTS, frozen, rank, world], node=node, stdin=-1)
        assert self.child.stdout.readline() == "open\n", self.child.stderr.read()

    def do(self, *command, says):
        self.child.stdin.write(" ".join(str(w) for w in command) + "\n")
        self.child.stdin.flush()
        line = self.child.stdout.readline().strip()
        assert line.split(" ")[0] == says, (command, line, self.child.stderr.read() if not line else "")
        return line

    def begin(self, step, early=0):
        self.do("begin", step, says="granted")
        self.do("copy", 0, PARTS, says="copied")
        if early:
            self.do("parts", early, says="ok")

    def commit(self):
        self.do("filled", says="ok")
        self.committed()

    def committed(self):
        while (event := self.do("event", says="event").split(" ", 3))[1] != "3":
            assert int(event[2]) == 0, event

    def save(self, *steps):
        for step in steps:
            self.begin(step)
            self.commit()
        self.c.wait_complete()

    def right(self, *steps):
        for step in steps:
            self.do("check", step, says="right")

    def end(self):
        self.child.stdin.close()
        assert self.child.wait(30) == 0


def committed(c, job):
    return {k["step"]: k for k in c.query("list", "--job", job)["checkpoints"] if k["state"] == "committed"}


def shares(c, job):
    """Of each committed step: the step that it shares parts with, and how many."""
    found = {}
    for step in committed(c, job):
        shard = c.tool("show", job, step)["shards"][0]
        found[step] = (shard["base"] and shard["base"]["step"], shard["coding"]["shared_parts"])
    return found


def verify(c, job, step, says=0):
    code, out, err = c.run([c.build / "client/tool/cairn", "--json", "verify", job, str(step)], check=False)
    assert code == says, (code, out, err)
    return json.loads(out)


def once(c):
    """Catches bases that grow into chains, one that serves for ever, fragments of what did not change."""
    r = Rank(c, "once")
    r.save(*range(1, 7))
    assert shares(c, "once") == {1: (None, 0), 2: (1, 12), 3: (1, 12), 4: (1, 12), 5: (None, 0), 6: (5, 12)}, shares(c, "once")
    sizes = {s: k["stored_bytes"] for s, k in committed(c, "once").items()}
    assert sizes[1] == sizes[5] and all(2 * sizes[s] == sizes[1] for s in (2, 3, 4, 6)), sizes
    assert verify(c, "once", 4)["fragments"] == verify(c, "once", 1)["fragments"]  # half of them its own
    assert "12.0 MiB did not change since step 5, and lies there" in c.run([c.build / "client/tool/cairn", "show", "once", "6"])[1]
    r.right(6)  # from the arena
    r.end()


def all_the_same(c):
    """A checkpoint without a byte of its own; and a job that shares nothing, whose checkpoints need nobody."""
    r = Rank(c, "still", PARTS)
    r.save(1, 2, 3)
    assert shares(c, "still") == {1: (None, 0), 2: (1, PARTS), 3: (1, PARTS)} and committed(c, "still")[2]["stored_bytes"] == 0
    r.end()
    r = Rank(c, "moving", 0)
    r.save(1, 2, 3)
    assert set(shares(c, "moving").values()) == {(None, 0)}
    r.end()


def mended(c):
    """Catches a verification that does not look where the bytes are, and a repair that counts fragments that never were."""
    r = Rank(c, "mend")
    r.save(1, 2, 3)
    peer = c.peers[1]
    zero(peer, "mend", 1)
    found = verify(c, "mend", 3, 5)
    assert {b.get("step") for b in found["bad"]} == {1} and found["repairable"], found
    own = verify(c, "mend", 1, 5)
    assert len(own["bad"]) == 2 * len(found["bad"]), (own, found)  # what changed since is not looked at
    assert c.tool("repair", "mend")["repaired"] == len(own["bad"])
    assert verify(c, "mend", 3)["bad"] == [] == verify(c, "mend", 1)["bad"]
    r.end()


def lost(c):
    """Catches checkpoints that go on referring to one that is known to be lost."""
    r = Rank(c, "lost")
    r.save(1, 2)
    for p in c.peers:
        damage(p, "lost", 1)
    assert verify(c, "lost", 2, 5)["repairable"] is False
    answer = c.tool("repair", "lost", check=False) or {}
    assert answer.get("lost_chunks", 1) > 0, answer
    r.save(3, 4)
    assert shares(c, "lost") == {1: (None, 0), 2: (1, 12), 3: (None, 0), 4: (3, 12)}, shares(c, "lost")
    r.end()


def from_the_peers(c):
    """All of these by a daemon that has no arena, without a peer (catches: bytes that only an arena had)."""
    c.node.kill()
    c.peers[0].kill()
    c.node.start()
    c.wait_peers_up(len(c.peers) - 1)
    for job, frozen, steps in ("once", FROZEN, range(1, 7)), ("still", PARTS, (1, 2, 3)), ("moving", 0, (2, 3)), ("mend", FROZEN, (1, 3)):
        r = Rank(c, job, frozen)
        r.right(*steps)
        r.end()
    c.peers[0].start()
    c.wait_peers_up(len(c.peers))


def kept(c):
    """Catches a base that is deleted under what shares with it, and one that is kept for nobody."""
    r = Rank(c, "keep")
    r.save(1, 2, 3, 4)
    code, _, err = c.run([c.build / "client/tool/cairn", "delete", "keep", "1"], check=False)
    assert code != 0 and re.search("step [234] was stored against", err), err
    c.tool("retain", "keep", "last=1")
    wait_until("what nobody needs to go", lambda: set(committed(c, "keep")) == {1, 4}, 40)
    r.save(5)  # a whole one
    wait_until("the old base to go", lambda: set(committed(c, "keep")) == {5}, 40)
    r.right(5)
    r.end()


def killed(c):
    """A daemon dies while it saves, early or not: what it shared is not lost with it (catches: a chunk without fragments whose base is not named)."""
    r = Rank(c, "killed")
    r.save(1, 2)
    r.begin(3, 16)
    wait_until("shared parts", lambda: any(f["job"] == "killed" and f["shared_parts"] == FROZEN for f in c.query("status")["flushes"]))
    out = c.run([c.build / "client/tool/cairn", "status"])[1]
    assert f"; {FROZEN} MiB did not change; 16 MiB while it was copied" in out, out
    c.node.kill()
    c.node.start()
    c.wait_peers_up(len(c.peers))
    r.do("back", says="ok")
    r.commit()
    r.save(4)  # of another start of the daemon, which knows of no base
    assert shares(c, "killed") == {1: (None, 0), 2: (1, 12), 3: (None, 0), 4: (None, 0)}, shares(c, "killed")
    r.right(1, 2, 3, 4)
    r.end()


def across(build):
    """Ranks on two nodes share what each has noted of the base; a node that forgot stores its rank's shard whole (catches: a base that only the
    coordinator's node knows, a rank that takes what is not its own)."""
    with Cluster(build, peers=3, nodes=2, common={}, node__share_unchanged=LIMIT, node__codecs="raw") as c:
        c.start_all()
        ranks = [Rank(c, "wide", rank=i, world=2, node=n) for i, n in enumerate(c.nodes)]
        for step in (1, 2, 3):
            if step == 3:
                c.nodes[1].kill()
                c.nodes[1].start()
                ranks[1].do("back", says="ok")
            for r in ranks:
                r.begin(step)
                r.do("filled", says="ok")
            for r in ranks:
                r.committed()
            c.wait_complete()
        shards = {s: c.tool("show", "wide", s)["shards"] for s in (1, 2, 3)}
        assert {s["node"] for s in shards[1]} == {"n1", "n2"}, shards
        found = {s: [(k["base"] and k["base"]["step"], k["coding"]["shared_parts"]) for k in shards[s]] for s in shards}
        assert found == {1: [(None, 0), (None, 0)], 2: [(1, FROZEN), (1, FROZEN)], 3: [(1, FROZEN), (None, 0)]}, found
        for n in c.nodes:
            n.kill()
            n.start()
        c.wait_peers_up()
        for r in ranks:  # from the peers
            r.right(2, 3)
            r.end()


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--build", required=True, type=pathlib.Path)
    p.add_argument("--only")
    a = p.parse_args()
    with Cluster(a.build, peers=4, node__share_unchanged=LIMIT, node__codecs="raw", retention__interval_s=1) as c:
        c.start_all()
        for test in once, all_the_same, mended, lost, from_the_peers, kept, killed:
            if a.only in (None, test.__name__):
                test(c)
                print(f"{test.__name__}: ok", flush=True)
    if a.only in (None, across.__name__):
        across(a.build)
        print(f"{across.__name__}: ok", flush=True)


if __name__ == "__main__":
    main()
