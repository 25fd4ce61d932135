#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a real training run, stored one against the other: what is read through a chain of bases is what was saved, a base stays as
long as what needs it and no longer, and what is damaged in a base is found and mended.

Catches: a difference that is restored as the state itself, a base that retention deletes under its checkpoint or never, a repair that needs
what is not there, a start that resumes from a chain that cannot be read."""
import argparse
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "lib"))
from cluster import Cluster, wait_until  # noqa: E402

STEPS, EVERY = 40, 4


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


def files_of(c, job, step):
    return [f for p in c.peers for f in p.stream_files() if f.parent.name == job and int(f.name.split(".")[0]) == step]


def refused(c, *args, says):
    code, out, err = c.run([c.build / "client/tool/cairn", *args], check=False)
    assert code != 0 and re.search(says, err), (code, out, err)


def restored(c):
    """Restored from the peers alone, through chains of every length, by another number of ranks: the bits of an undisturbed run."""
    train(c, "plain", STEPS + 12, EVERY, "--no-save", "--checksum", c.dir / "sum0", "--ranks", 1)
    train(c, "run", STEPS, EVERY, "--ranks", 1, "--arena-mib", 64)
    chains = bases(c, "run")
    depths = {chain for _, chain in chains.values()}
    assert depths == {0, 1, 2}, chains  # never more than was allowed, and all of them happen
    assert all(base is None or base < step for step, (base, _) in chains.items()), chains
    c.wait_complete()
    newest = max(s for s, (_, chain) in chains.items() if chain == 2)
    assert c.tool("verify", "run", newest)["bad"] == []
    sizes = {s: k["stored_bytes"] for s, k in committed(c, "run").items()}
    full = [sizes[s] for s, (_, chain) in chains.items() if chain == 0]
    deltas = [sizes[s] for s, (_, chain) in chains.items() if chain > 0]
    print(f"stored with a base / without: {sum(deltas) / len(deltas) / (sum(full) / len(full)):.3f}")
    c.node.kill()
    c.peers[0].kill()
    c.node.start()
    c.wait_peers_up(len(c.peers) - 1)
    out = train(c, "run", STEPS + 12, EVERY, "--ranks", 1, "--arena-mib", 64, "--checksum", c.dir / "sum1")
    assert f"resumes from step {STEPS}" in out, out
    assert (c.dir / "sum1").read_text() == (c.dir / "sum0").read_text()
    c.peers[0].start()
    c.wait_peers_up(len(c.peers))
    for step in committed(c, "run"):  # what was saved without that peer
        c.tool("repair", "run", step)


def kept(c):
    """A base is not deleted before what needs it, and then it goes."""
    chains = bases(c, "run")
    step, (base, _) = max((s, b) for s, b in chains.items() if b[0] is not None)
    refused(c, "delete", "run", str(base), says=f"step {step} was stored against")
    c.tool("retain", "run", "last=1")
    last = max(chains)

    def needed():
        left, s = {last, STEPS}, last  # STEPS: the job resumes from it
        for s in (last, STEPS):
            while (b := chains.get(s, (None, 0))[0]) is not None:
                left.add(b)
                s = b
        return left

    # an intent may have named a base that no part turned out to need: a chain more
    wait_until("what nobody needs to go", lambda: len(committed(c, "run")) <= len(needed()) + 2, 40)
    assert needed() <= set(committed(c, "run")), (committed(c, "run"), needed(), chains)
    assert c.tool("verify", "run", last)["bad"] == []
    train(c, "run", STEPS + 40, EVERY, "--ranks", 1, "--arena-mib", 64)
    wait_until("old chains to go", lambda: len(committed(c, "run")) <= 8, 40)


def damaged(c):
    """Whatever is gone of a base is mended by repair, which needs no base itself."""
    train(c, "again", 20, EVERY, "--ranks", 1, "--arena-mib", 64)
    c.wait_complete()
    chains = bases(c, "again")
    step, (base, _) = max((s, b) for s, b in chains.items() if b[0] is not None)
    for s in (base, step):
        f = files_of(c, "again", s)[0]
        f.write_bytes(f.read_bytes()[:4096] + bytes(max(0, f.stat().st_size - 4096)))
    c.tool("repair", "again", base)
    c.tool("repair", "again", step)
    assert c.tool("verify", "again", step)["bad"] == []


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    with Cluster(parser.parse_args().build, peers=4, node__delta_chain=2, retention__interval_s=1) as c:
        c.start_all()
        for test in (restored, kept, damaged):
            print(test.__name__, flush=True)
            test(c)


main()
