#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints stored one against the other, of a client whose saves wait for each other and of a real training run: what is read through a
chain of bases is what was saved, a base stays as long as what needs it and no longer, and what is damaged in a base is found and mended.

Catches: a difference that is restored as the state itself, a base that retention deletes under its checkpoint or never, a repair that needs
what is not there, a start that resumes from a chain that cannot be read, a verification that does not look at bases, a scrub that takes lost
records for room that was never written to."""
import argparse
import json
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "lib"))
from cluster import Cluster, wait_until  # noqa: E402
from rot import damage, zero  # noqa: E402
from trainer import Book, Trainer  # noqa: E402

STEPS, EVERY = 40, 4
SIZE = ["--bytes", str(6 << 20)]


def train(c, job, steps, every, *args):
    code, out, err = c.run([c.build / "client/examples/train", "--job", job, "--steps", steps, "--save-every", every, "--on-busy", "wait", *args],
                           seconds=150, check=False)
    assert code == 0, out + err
    return out


def committed(c, job):
    return {k["step"]: k for k in c.query("list", "--job", job)["checkpoints"] if k["state"] == "committed"}


def bases(c, job):
    """Of each committed step: the step of its base, or None, and how long its longest chain is."""
    found = {}
    for step in committed(c, job):
        shards = c.tool("show", job, step)["shards"]
        found[step] = (next((s["base"]["step"] for s in shards if s["base"]), None), max(s["chain"] for s in shards))
    return found


def save(c, job, count, start="first"):
    """Each save begins when the one before it is committed, so that every one finds its base where it looks for it."""
    out = c.client("save", *SIZE, "--job", job, "--count", count, "--start-id", start)[1]
    assert out.count("committed ") == count, out
    c.wait_complete()


def verify(c, job, step, says=0):
    code, out, err = c.run([c.build / "client/tool/cairn", "--json", "verify", job, str(step)], check=False)
    assert code == says, (code, out, err)
    return json.loads(out)


def scrubbed(c, peer, job):
    answer = json.loads(c.run([c.build / "client/tool/cairn", "--json", "scrub", job], check=False)[1])
    assert answer["complete"], answer
    return next(p for p in answer["peers"] if p["peer"] == peer.name)["bad"]


def refused(c, *args, says):
    code, out, err = c.run([c.build / "client/tool/cairn", *args], check=False)
    assert code != 0 and re.search(says, err), (code, out, err)


def chained(c):
    """Through chains of every length, from the peers alone, one of them away."""
    save(c, "chain", 6)
    assert bases(c, "chain") == {1: (None, 0), 2: (1, 1), 3: (2, 2), 4: (None, 0), 5: (4, 1), 6: (5, 2)}, bases(c, "chain")
    sizes = {s: k["stored_bytes"] for s, k in committed(c, "chain").items()}
    assert max(sizes[2], sizes[3], sizes[5], sizes[6]) < 0.8 * min(sizes[1], sizes[4]), sizes
    c.node.kill()
    c.peers[0].kill()
    c.node.start()
    c.wait_peers_up(len(c.peers) - 1)
    for step in sizes:
        assert f"verified {step}" in c.client("verify", *SIZE, "--job", "chain", "--step", step)[1]
    c.peers[0].start()
    c.wait_peers_up(len(c.peers))


def covered(c):
    """What a peer lost of a base is named when what needs it is verified, is found by a scrub and mended by a repair, which needs no base itself."""
    save(c, "cover", 3)
    peer = c.peers[0]
    assert verify(c, "cover", 3)["bad"] == [] and scrubbed(c, peer, "cover") == 0
    for base in (1, 2):
        holds = c.tool("show", "cover", str(base))["shards"][0]["peers"][peer.name]
        assert holds > 0 and zero(peer, "cover", base) == 1
        assert scrubbed(c, peer, "cover") >= 1
        assert len(verify(c, "cover", base, 5)["bad"]) == holds
        found = verify(c, "cover", 3, 5)
        assert {b.get("step") for b in found["bad"]} == {base} and found["repairable"], found
        assert len(found["bad"]) == found["missing"] + found["corrupt"] == found["fragments"] - found["ok"] <= holds, found
        assert c.tool("repair", "cover", str(base))["repaired"] == holds
        assert verify(c, "cover", 3)["bad"] == [] == verify(c, "cover", base)["bad"]
    for p in c.peers:
        damage(p, "cover", 1)
    assert not verify(c, "cover", 3, 5)["repairable"]
    c.node.kill()  # the arena would help
    c.node.start()
    c.wait_peers_up(len(c.peers))
    code, out, _ = c.client("verify", *SIZE, "--job", "cover", "--step", 3, "--timeout", 10000, check=False)
    assert code != 0 and "differs" not in out and re.search("base .*in step 1", out), out


def away(c):
    """A peer that was away has copies of manifests and decisions only: no fragment of the checkpoint is lost with them, a scrub sees it all the same."""
    peer = c.peers[0]
    peer.kill()
    wait_until("its record to go", lambda: c.peers_up() == len(c.peers) - 1 and
               next(p for p in c.query("status")["peers"] if p["peer"] == peer.name)["state"] == "gone", 30)
    save(c, "away", 3)
    peer.start()
    c.wait_peers_up(len(c.peers))
    assert c.tool("repair", "away")["repaired"] == 0
    assert all(peer.name not in c.tool("show", "away", str(s))["shards"][0]["peers"] for s in (1, 2, 3))
    files = sum(zero(peer, "away", s) for s in (1, 2, 3))
    assert files > 0 and verify(c, "away", 3)["bad"] == []
    assert scrubbed(c, peer, "away") >= files


def resumed(c):
    """A start whose newest checkpoint lacks its base's fragments resumes from one that has all of its own."""
    save(c, "resume", 5)
    assert bases(c, "resume")[5] == (4, 1) and bases(c, "resume")[3] == (2, 2)
    assert sum(damage(p, "resume", 4) for p in c.peers) > 0
    assert not verify(c, "resume", 5, 5)["repairable"]  # and peers know now
    c.node.kill()  # it may have kept what it read
    c.node.start()
    c.wait_peers_up(len(c.peers))
    out = c.client("save", *SIZE, "--job", "resume", "--count", 0, "--start-id", "second")[1]
    assert "latest 3" in out, out
    assert "looking for an older one" in c.node.tail(200) and "in step 4 has" in c.node.tail(200)
    assert f"verified {3}" in c.client("verify", *SIZE, "--job", "resume", "--step", 3)[1]


def kept(c):
    """A base is not deleted before what needs it, and then it goes."""
    save(c, "keep", 6)
    refused(c, "delete", "keep", "5", says="step 6 was stored against")
    c.tool("retain", "keep", "last=1")
    wait_until("what nobody needs to go", lambda: set(committed(c, "keep")) == {4, 5, 6}, 40)
    save(c, "keep", 3, "second")
    assert set(committed(c, "keep")) == {4, 5, 6, 7, 8, 9}  # the job resumes from 6; the last one is 9
    assert verify(c, "keep", 6)["bad"] == [] == verify(c, "keep", 9)["bad"]
    save(c, "keep", 1, "third")
    wait_until("an old chain to go", lambda: set(committed(c, "keep")) == {7, 8, 9, 10}, 40)
    assert f"verified {9}" in c.client("verify", *SIZE, "--job", "keep", "--step", 9)[1]


def trained(c):
    """A real run goes on, without a peer, with the bits of an undisturbed one. How many of its saves are deltas depends
    on the machine: a save that begins before the last one is committed finds its base's pages taken."""
    train(c, "plain", STEPS + 12, EVERY, "--no-save", "--checksum", c.dir / "sum0", "--ranks", 1)
    train(c, "run", STEPS, EVERY, "--ranks", 1, "--arena-mib", 64)
    chains = bases(c, "run")
    assert max(chain for _, chain in chains.values()) <= 2, chains  # never more than was allowed
    assert all(base is None or base < step for step, (base, _) in chains.items()), chains
    c.wait_complete()
    c.node.kill()
    c.peers[0].kill()
    c.node.start()
    c.wait_peers_up(len(c.peers) - 1)
    out = train(c, "run", STEPS + 12, EVERY, "--ranks", 1, "--arena-mib", 64, "--checksum", c.dir / "sum1")
    assert f"resumes from step {STEPS}" in out, out
    assert (c.dir / "sum1").read_text() == (c.dir / "sum0").read_text()
    print("a training run's bases:", {step: base for step, (base, _) in bases(c, "run").items()})


def across(build):
    """Ranks on every node have bases, not only those beside the coordinator."""
    with Cluster(build, peers=4, nodes=2, common={}, node__delta_chain=2, node__codecs="lz4 float dense") as c:
        c.start_all()
        t = Trainer(c, 1, Book(), per_node=1, size=3 << 20, job="wide", count=4)
        t.wait(90)
        shards = {s: c.tool("show", "wide", str(s))["shards"] for s in committed(c, "wide")}
        assert len(shards) == 4 and {s["node"] for s in shards[1]} == {"n1", "n2"}, shards
        found = {s: [shard["base"] and shard["base"]["step"] for shard in k] for s, k in shards.items()}
        assert found == {1: [None, None], 2: [1, 1], 3: [2, 2], 4: [None, None]}, found
        for n in c.nodes:
            n.kill()
        c.node.start()
        c.wait_peers_up(len(c.peers))
        args = ["--bytes", str(3 << 20), "--world", "2", "--job", "wide", "--seed", "1"]
        for step in shards:
            assert f"verified {step}" in c.client("verify", *args, "--step", step)[1]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    # without raw: on a fast path a part may be sooner there as it is than as a delta
    build = parser.parse_args().build
    with Cluster(build, peers=4, node__delta_chain=2, node__codecs="lz4 float dense", retention__interval_s=1) as c:
        c.start_all()
        for test in (chained, covered, resumed, kept, away, trained):
            print(test.__name__, flush=True)
            test(c)
    print(across.__name__, flush=True)
    across(build)


main()
