#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The storm: two ranks save without a pause while trainers, the node daemon and peers are killed (SIGKILL) or stopped at random moments.

After every fault: whatever a rank was told is committed is listed and restores bit for bit; whatever is listed restores bit for bit.
The contents are a function of (start, step, rank), so a checkpoint that mixes two saves or two starts, or lacks a fragment, cannot pass.

Catches: a commit that is told before it is decided, a decision before the shards are durable, an acknowledgement before fdatasync is
waited for, an incarnation that is not fenced, a stream that is deleted though it was committed, a delta whose base is another one.

With --retain all but the newest checkpoints are deleted meanwhile, and new ones are written over their files: what is left is checked.

    test_storm.py --build DIR [--points N] [--seed S] [--margin M] [--codecs C] [--delta-chain N] [--retain]
                                                                      the same seed makes the same choices
"""
import argparse
import collections
import pathlib
import random
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "lib"))
from cluster import Cluster, wait_until  # noqa: E402
from trainer import Book, Trainer, deltas, encoding  # noqa: E402

WORLD = 2
BYTES = 3 << 20
SIZE = ["--bytes", str(BYTES), "--world", str(WORLD)]
LAST = 3  # that are retained


class Storm:
    def __init__(self, cluster, seed, margin, retain=False):
        self.retain, self.over = retain, 0  # peers that were seen with files to write over
        self.margin = margin  # so many peers may be lost at once, the moment a commit is told
        self.c, self.random = cluster, random.Random(seed)
        self.book, self.verified, self.starts, self.counts = Book(), set(), 0, collections.Counter()
        self.trainer = None

    def start_trainer(self):
        self.starts += 1
        self.trainer = Trainer(self.c, self.starts, self.book, per_node=WORLD, size=BYTES)

    def wait_progress(self):
        """The next kill comes while saves are on their way, not while everything is still starting."""
        before, trainer = len(self.book.told), self.trainer
        wait_until("a commit since the last fault", lambda: len(self.book.told) > before or trainer.ended(), 60)
        assert not trainer.ended(), "a rank ended: " + "".join(r.process.stderr.read() for r in trainer.ended())

    def point(self):
        time.sleep(self.random.uniform(0, 0.12))  # the moment of the fault: anywhere within a save
        kind = self.random.choice(["trainer", "trainer", "rank", "node", "node", "peer", "peer", "peers", "freeze"])
        self.counts[kind] += 1
        getattr(self, "fault_" + kind)()

    def restart_trainer(self):
        self.trainer.join()
        self.start_trainer()

    def fault_trainer(self):
        self.trainer.kill()
        self.restart_trainer()

    def fault_rank(self):
        self.random.choice(self.trainer.ranks).kill()
        self.restart_trainer()

    def fault_node(self):
        self.c.node.kill()
        self.c.node.start()  # the ranks reconnect by themselves

    def fault_peer(self):
        p = self.random.choice(self.c.peers)
        p.kill()
        self.check()
        p.start()

    def fault_peers(self):
        pair = self.random.sample(self.c.peers, self.margin)
        for p in pair:
            p.kill()
        self.check()
        for p in pair:
            p.start()

    def fault_freeze(self):
        p = self.random.choice(self.c.peers)
        p.freeze()
        self.check()
        p.thaw()

    def committed(self):
        """The incarnation of each committed step."""
        listed = wait_until("the list of checkpoints", lambda: self.c.query("list"), 20)
        return {k["step"]: k["incarnation"] for k in listed["checkpoints"] if k["state"] == "committed"}

    def verify(self, step, incarnation):
        seed = self.book.seed(step, incarnation)
        out = wait_until(f"step {step} to be restored", lambda: self.try_verify(step, seed), 30)
        assert f"verified {step}" in out, out

    def try_verify(self, step, seed):
        """A refusal may pass while peers come and go; a wrong byte may not."""
        code, out, _ = self.c.client("verify", *SIZE, "--step", step, "--seed", seed, check=False)
        assert "differs" not in out, out
        if code != 0 and self.retain and step not in self.committed():
            return f"verified {step} cannot be: it was deleted meanwhile"
        return out if code == 0 else None

    def lost(self, told, listed):
        """Told, and not there; but for those that retention may have deleted."""
        newest = sorted(told | set(listed))[-LAST:]
        return sorted(s for s in told - set(listed) if not self.retain or s in newest)

    def check(self):
        told = set(self.book.told)
        listed = self.committed()
        self.over += sum(any((p.dir / "state/peer/recycle").iterdir()) for p in self.c.peers if p.alive())
        assert not self.lost(told, listed), f"committed and lost: {self.lost(told, listed)}"
        newest = max(listed, default=None)
        if newest is not None:
            self.verify(newest, listed[newest])

    def check_all(self):
        self.trainer.join()
        assert not self.book.twice, f"told by two starts: {self.book.twice}"
        listed = sorted(self.committed().items())
        for step, incarnation in listed[-LAST:] if self.retain else listed:
            self.verify(step, incarnation)
            self.verified.add(step)
        lost = self.lost(set(self.book.told), self.verified)
        assert not lost, f"committed and lost: {lost}"
        assert not self.retain or self.over, "no peer kept a file to write over"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--margin", type=int, choices=[1, 2], help="of the node (default: odd seeds 1, even ones 2)")
    parser.add_argument("--codecs", help="of the node (default: by the seed)")
    parser.add_argument("--delta-chain", type=int, help="of the node (default: by the seed)")
    parser.add_argument("--retain", action="store_true")
    a = parser.parse_args()
    how = encoding(a.seed, a.codecs, a.delta_chain)
    if a.retain:
        how = {**how, "retention__rule": f"last={LAST}", "retention__interval_s": 1}
    margin = a.margin or 2 - a.seed % 2
    begin = time.monotonic()
    with Cluster(a.build, peers=6, node__fragment_late_ms=500, node__connect_ms=500, node__sync_late_ms=3000,
                 node__backoff_ms=100, node__margin=margin, **how) as c:
        c.start_all()
        storm = Storm(c, a.seed, margin, a.retain)
        storm.start_trainer()
        for i in range(a.points):
            try:
                storm.wait_progress()
                storm.point()
                storm.check()
            except Exception as e:
                raise RuntimeError(f"seed {a.seed}, point {i + 1}, faults {dict(storm.counts)}: {e}") from e
        storm.check_all()
        based = deltas(c, sorted(storm.verified)[-40:])
        # ranks that wait for each other's commits find the base that they left in the arena, but for those behind a fault
        assert based > 0 or how["node__delta_chain"] == 0 or how["node__codecs"] == "raw" or len(storm.verified) < 10, "no checkpoint has a base"
        print(f"codecs {how['node__codecs']}, chains of {how['node__delta_chain']}: of the last 40 checkpoints {based} have a base")
        print(f"{a.points} faults {dict(storm.counts)}, seed {a.seed}, margin {margin}: {len(storm.book.told)} commits told, {len(storm.verified)} listed, "
              f"all restored bit for bit, {storm.starts} starts, {time.monotonic() - begin:.0f} s")
    print("1 passed, 0 failed")


main()
