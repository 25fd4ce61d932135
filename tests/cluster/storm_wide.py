#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The wide storm: nodes, peers and members of etcd on hosts of their own; ranks on every node save without a pause, while ranks, daemons
and members are killed, stopped, unplugged, cut off in one direction, slowed down, their disks filled and their files damaged.

During every fault whatever can be read is right to the last bit, and as long as no more peers are hurt than the margin says, the newest
checkpoint that a rank was told can be read. After every fault saves go on, everything that was told is listed, and at the end every
checkpoint is restored. No rank is silent for longer than its deadlines allow.

    storm_wide.py --build DIR [--faults N] [--seed S] [--nodes 1] [--peers 6] [--etcd 0]

The same seed chooses the same faults; when they hit depends on the machine. Catches, beyond test_storm.py: a coordinator that goes on
after its lease, a report that counts twice, a commit that half of the job has not heard of, a full disk that loses what it took.
"""
import argparse
import collections
import pathlib
import random
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "lib"))
import faults  # noqa: E402
import netns  # noqa: E402
from cluster import SKIP, wait_until  # noqa: E402
from trainer import Book, Trainer, deltas, encoding  # noqa: E402
from wide import Wide  # noqa: E402

TIMEOUT_MS = 20000  # of each call of a rank
SLACK_S = 15  # two cores, dozens of processes
SILENCE_S = 2 * TIMEOUT_MS / 1000 + SLACK_S  # begin and wait may each take their time before a line comes
LAST = 5  # that retention keeps
READ_S = 60  # for what must be readable to be read


class Storm:
    def __init__(self, cluster, a):
        self.c, self.a = cluster, a
        self.random, self.checks = random.Random(a.seed), random.Random(a.seed)  # what goes wrong; what is looked at
        self.book, self.counts, self.reads = Book(), collections.defaultdict(lambda: [0, 0.0]), collections.Counter()
        self.starts, self.trainer, self.active, self.printed = 0, None, [], 0
        self.world = a.nodes * a.ranks

    # ---- the cluster

    def members(self):
        return self.c.etcd.members if self.c.etcd else []

    def start_trainer(self):
        self.starts += 1
        self.trainer = Trainer(self.c, self.starts, self.book, per_node=self.a.ranks, size=self.a.bytes, timeout_ms=TIMEOUT_MS,
                               pause_ms=self.a.pause)

    def restart_trainer(self):
        self.trainer.join()
        self.start_trainer()

    def hurt(self, group):
        return [f.part for f in self.active if f.group == group]

    def well_nodes(self):
        return [n for n in self.c.nodes if n not in self.hurt("node")]

    # ---- faults

    def pick(self):
        """A fault that the margin, the majority of etcd and what is hurt already allow."""
        while True:
            kind = self.random.choice([k for k in faults.KINDS if k.group != "etcd" or self.members()])
            parts = [p for p in kind.possible(self) if p not in self.hurt(kind.group)]
            most = {"peer": self.a.margin, "etcd": (len(self.members()) - 1) // 2, "node": len(self.c.nodes), "rank": 1}[kind.group]
            if parts and len(self.hurt(kind.group)) < most:
                return kind(self, self.random.choice(parts))

    def point(self):
        time.sleep(self.random.uniform(0, 0.12))  # anywhere within a save
        try:
            for _ in range(self.random.choice([1, 1, 2])):
                f = self.pick()
                print(f"  {time.monotonic() - self.begin:6.1f} s  {f.name()}", flush=True)
                f.began = time.monotonic()
                if f.lasts:
                    self.active.append(f)
                f.begin()
                self.counts[f.kind][0] += 1
            time.sleep(self.random.uniform(0, 2) if self.active else 0)
            self.check_during()
        finally:
            self.end_faults()

    def end_faults(self):
        while self.active:
            f = self.active.pop()
            self.counts[f.kind][1] += time.monotonic() - f.began
            f.end()

    # ---- what must hold

    def silence(self):
        for r in self.trainer.ranks:
            if r.alive():
                r.quiet_for()
        assert self.book.longest < SILENCE_S, f"a rank said nothing for {self.book.longest:.0f} s; its deadlines allow {SILENCE_S:.0f} s"

    def wait_progress(self):
        """Saves are committed again. A rank that ended because nobody let it in is what a launcher restarts."""
        before, end = len(self.book.told), time.monotonic() + self.a.recover
        while len(self.book.told) == before:
            self.silence()
            if self.trainer.ended():
                self.reads["starts that were refused"] += 1
                self.restart_trainer()
            if time.monotonic() > end:
                said = [r.last_line for r in self.trainer.ranks]
                raise AssertionError(f"nothing was committed for {self.a.recover} s; the ranks' last lines: {said}")
            time.sleep(0.05)

    def listed(self, node):
        out = self.c.query("list", node=node)
        return {k["step"]: k["incarnation"] for k in out["checkpoints"] if k["state"] == "committed"} if out else None

    def try_verify(self, step, seed, node):
        """True or False; never a wrong byte, never later than its deadline."""
        begin = time.monotonic()
        code, out, _ = self.c.client("verify", "--bytes", self.a.bytes, "--world", self.world, "--step", step, "--seed", seed, "--timeout",
                                     TIMEOUT_MS, check=False, node=node, seconds=TIMEOUT_MS / 1000 * (2 * self.world + 2) + SLACK_S)
        assert "differs" not in out, out
        self.reads["restored" if code == 0 else "refused for now"] += 1
        self.last_read = out.strip()
        return code == 0 and time.monotonic() - begin

    def verify(self, step, incarnation, node):
        seed = self.book.seed(step, incarnation)
        try:
            wait_until("", lambda: self.try_verify(step, seed, node) or self.was_deleted(step, node), READ_S)
        except TimeoutError:
            hurt = [f.name() for f in self.active]
            raise AssertionError(f"step {step} cannot be restored by {node.name} ({', '.join(hurt) or 'nothing is hurt'}): {self.last_read}; "
                                 f"it lies on {self.placed(step)}") from None

    def was_deleted(self, step, node):
        """Since it was listed: a base goes a look later than what needed it. What retention keeps is no excuse."""
        listed = self.listed(node) if self.a.retain else None
        return listed and step not in listed and len([s for s in listed if s > step]) >= LAST

    def placed(self, step):
        """Of each rank geometry and peers, once everything is whole again: for the message."""
        self.end_faults()
        try:
            shown = wait_until("", lambda: self.c.tool("show", "test", step, check=False, seconds=70), 30)
            return "; ".join(f"rank {s['rank']} {s['geometry']} {' '.join(s['peers'])}" for s in shown["shards"])
        except TimeoutError:
            return "nobody knows which peers"

    def check_during(self):
        """Metadata may be away for a moment, and a list that is older than a commit is not asked for."""
        told = dict(self.book.told)
        if not told or not self.well_nodes():
            return
        node = self.checks.choice(self.well_nodes())
        listed = wait_until("the list of checkpoints", lambda: self.listed(node), READ_S)
        self.check_listed(told, listed, node)
        for step in sorted({s for f in self.active for s in f.steps() if s in listed})[:4]:
            if not self.a.retain:
                self.verify(step, listed[step], node)

    def check_listed(self, told, listed, node):
        newest = max(listed, default=-1)
        lost = [s for s in told if s not in listed and (s > newest or not self.a.retain)]
        assert not lost, f"committed and lost: {sorted(lost)}"
        if listed:
            self.verify(newest, listed[newest], node)
            some = self.checks.choice(sorted(listed))
            if not self.a.retain:  # with retention an older one may go at any moment
                self.verify(some, listed[some], node)

    def check_after(self):
        told, node = dict(self.book.told), self.checks.choice(self.c.nodes)
        self.check_listed(told, wait_until("the list of checkpoints", lambda: self.listed(node), READ_S), node)

    def check_all(self):
        self.trainer.join()
        self.c.wait_peers_up(len(self.c.peers))
        assert not self.book.twice, f"told by two starts: {self.book.twice}"
        listed = wait_until("the list of checkpoints", lambda: self.listed(self.c.node), READ_S)
        for i, (step, incarnation) in enumerate(sorted(listed.items())):
            self.verify(step, incarnation, self.c.nodes[i % len(self.c.nodes)])
        self.check_listed(dict(self.book.told), listed, self.c.node)
        return len(listed)

    def run(self):
        self.begin = time.monotonic()
        self.start_trainer()
        for i in range(self.a.faults):
            try:
                self.wait_progress()
                self.point()
                self.check_after()
                self.print_failures()
            except Exception as e:
                raise RuntimeError(f"seed {self.a.seed}, fault {i + 1} of {self.a.faults}: {e}") from e
        self.wait_progress()
        return self.check_all()

    def print_failures(self):
        """Why saves failed since the last time; ranks say the same, so each reason once."""
        new = self.book.failures[self.printed:]
        self.printed += len(new)
        for line in {line.split(maxsplit=2)[-1].split(maxsplit=1)[-1]: line for line in new}.values():
            print(f"             {line[:240]}", flush=True)

    def failures(self):
        codes = collections.Counter(line.split()[2] for line in self.book.failures)
        return ", ".join(f"{n} {code}" for code, n in codes.most_common()) or "none"

    def table(self):
        lines = [f"{'fault':<24}{'times':>6}{'seconds':>9}"]
        lines += [f"{kind:<24}{n:>6}{seconds:>9.1f}" for kind, (n, seconds) in sorted(self.counts.items())]
        return "\n".join(lines)


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    parser.add_argument("--faults", type=int, default=20, help="moments at which one or two things go wrong")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=2, help="on each node")
    parser.add_argument("--peers", type=int, default=6)
    parser.add_argument("--etcd", type=int, default=0, help="members; 0: a SQLite file")
    parser.add_argument("--margin", type=int, default=1, help="peers hurt at once")
    parser.add_argument("--bytes", type=int, default=1 << 20, help="of each rank")
    parser.add_argument("--pause", type=int, default=100, help="ms between two saves")
    parser.add_argument("--disk-mib", type=int, default=1024, help="of each peer")
    parser.add_argument("--recover", type=float, default=90, help="seconds until something must be committed again")
    parser.add_argument("--retain", action="store_true", help="the cluster deletes older checkpoints")
    parser.add_argument("--keep", action="store_true", help="leave the files")
    parser.add_argument("--codecs", help="of the nodes (default: by the seed)")
    parser.add_argument("--delta-chain", type=int, help="of the nodes (default: by the seed)")
    return parser.parse_args()


def main():
    a = parse()
    try:
        netns.enter()
        rule = {"retention__rule": f"last={LAST} every=100", "retention__interval_s": 2} if a.retain else {}
        c = Wide(a.build, common=rule, nodes=a.nodes, peers=a.peers, etcd=a.etcd, disk_mib=a.disk_mib, keep=a.keep, node__fragment_late_ms=500,
                 node__connect_ms=500, node__sync_late_ms=3000, node__backoff_ms=100, node__checkpoint_s=30,
                 **encoding(a.seed, a.codecs, a.delta_chain))
    except (netns.NotPermitted, netns.Missing) as e:
        print(f"skipped: {e}")
        sys.exit(SKIP)
    with c:
        c.start_all()
        storm = Storm(c, a)
        try:
            listed = storm.run()
        finally:
            print(storm.table(), flush=True)
        how = encoding(a.seed, a.codecs, a.delta_chain)
        based = deltas(c, sorted(storm.listed(c.node) or {})[-40:])
        print(f"codecs {how['node__codecs']}, chains of {how['node__delta_chain']}: of the last 40 checkpoints {based} have a base")
        for kind in sorted(c.net.missing):
            print(f"left out: the kernel has no {kind}")
        print(f"seed {a.seed}: {a.faults} times, {storm.starts} starts, {len(storm.book.told)} commits told, {listed} listed, all restored bit "
              f"for bit; saves that failed: {storm.failures()}; {dict(storm.reads)}; longest silence of a rank "
              f"{storm.book.longest:.1f} s; {time.monotonic() - storm.begin:.0f} s")
    print("1 passed, 0 failed")


main()
