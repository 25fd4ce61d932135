# SPDX-License-Identifier: Apache-2.0
"""scripts/demo --cluster: nodes, peers and members of etcd on hosts of their own (network namespaces of this machine). A training run over
all nodes goes on while peers are killed, stopped and unplugged; then a whole node and two peers disappear, and the job resumes with fewer
ranks on what is left, from the same state to the last bit."""
import sys
import time

import etcd
import netns
from cluster import SKIP, wait_until
from training import Run
from wide import Wide

RANKS, EVERY, MORE = 2, 5, 20


def say(text):
    print(text, flush=True)


class Demo:
    def __init__(self, c):
        self.c, self.n, self.begin = c, 0, time.monotonic()
        self.world = RANKS * len(c.nodes)

    def step(self, text):
        self.n += 1
        say(f"{self.n}. [{time.monotonic() - self.begin:3.0f} s] {text}")

    def committed(self, run):
        """A save that begins from now on is committed."""
        seen = len(run.lines)
        saved = run.read_until(r"step (\d+): rank \d+ saved ([\d.]+) MiB, stall ([\d.]+) ms", after=seen)
        done = run.read_until(rf"step ({saved.group(1)}): (committed|warning.*)", after=seen)
        if done.group(2) != "committed":  # what was on its way when it happened; the next one counts
            return self.committed(run)
        took = run.read_until(rf"step {saved.group(1)}: committed (\d+) ms", after=seen).group(1)
        say(f"   step {saved.group(1)}: {saved.group(2)} MiB a rank, stall {saved.group(3)} ms, committed {took} ms after its copy")
        return int(saved.group(1))

    def through(self, run, what, hurt, heal):
        self.step(what)
        hurt()
        self.committed(run)
        heal()

    def bad_days(self, run):
        p = self.c.peers
        self.through(run, f"kill -9 of peer {p[0].name}", p[0].kill, p[0].start)
        self.through(run, f"peer {p[1].name} hangs (SIGSTOP)", p[1].freeze, p[1].thaw)
        self.through(run, f"the cable of peer {p[2].name} is pulled", p[2].host.unplug, p[2].host.plug)
        if "tbf" not in self.c.net.missing:
            self.through(run, f"the network of peer {p[3].name} has 2 Mbit/s", lambda: p[3].host.shape(2), p[3].host.unshape)
        if self.c.etcd:
            leader = self.c.etcd.leader()
            self.through(run, f"kill -9 of {leader.name}, the leader of etcd", leader.kill, leader.start)
        self.c.wait_peers_up(len(p))

    def disaster(self, run):
        """Returns the nodes that are left."""
        run.kill_ranks()
        for p in self.c.peers[:2]:
            p.kill()
            p.host.unplug()
        self.c.nodes[-1].kill()
        if len(self.c.nodes) > 1:
            self.c.nodes[-1].host.unplug()
            self.step(f"lost for good: node {self.c.nodes[-1].name} with its ranks, peers p1 and p2; all other ranks are killed")
            return self.c.nodes[:-1]
        self.c.nodes[-1].start()
        self.step("lost for good: peers p1 and p2; all ranks and the node daemon are killed, only the daemon comes back")
        return self.c.nodes

    def latest(self, node):
        listed = wait_until("the list of checkpoints", lambda: self.c.query("list", "--job", "demo", node=node))
        return listed["latest"]

    def run(self):
        c = self.c
        self.step(f"{len(c.nodes)} node{'s' if len(c.nodes) > 1 else ''}, {len(c.peers)} peers, " + (f"{len(c.etcd.members)} members of etcd" if c.etcd else "metadata in SQLite") +
                  ": processes on hosts of their own, a switch between them")
        c.start_all()
        self.step(f"training: {self.world} ranks, {RANKS} on each node, saved every {EVERY} steps")
        run = Run(c, "run", "first", self.world, 1000000, EVERY)
        self.committed(run)
        self.bad_days(run)
        left = self.disaster(run)
        fewer = RANKS * len(left) if len(c.nodes) > 1 else 1
        wait_until("the peers that are left", lambda: c.peers_up() >= len(c.peers) - 2, 60)
        step = self.latest(left[0])
        self.step(f"the newest committed step is {step}; {fewer} ranks read what {self.world} saved")
        second = Run(c, "resumed", "second", fewer, step, EVERY, nodes=left)
        found = second.read_until(r"resumes from step (\d+): ([\d.]+) MiB in (\d+) ms")
        second.finish()
        say(f"   {found.group(2)} MiB in {found.group(3)} ms, fragments of the lost peers computed from parity")
        self.step(f"for comparison: {step} steps with {self.world} ranks that nothing happened to")
        reference = Run(c, "reference", None, self.world, step)
        reference.finish()
        same = int(found.group(1)) == step and second.sum.read_bytes() == reference.sum.read_bytes()
        say(f"   weights, Adam's moments and the bf16 copy are {'identical to the last bit' if same else 'DIFFERENT'}")
        self.step(f"training goes on with {fewer} ranks and {len(c.peers) - 2} peers")
        third = Run(c, "on", "third", fewer, step + MORE, EVERY, nodes=left)
        third.finish()
        latest = self.latest(left[0])
        say(f"   trained and committed up to step {latest}; stalls {min(third.stalls()):.1f} to {max(third.stalls()):.1f} ms")
        return same and latest == step + MORE


def main(a):
    if a.etcd is None:
        a.etcd = 3 if etcd.AVAILABLE else 0
    try:
        netns.enter()
        c = Wide(a.build, nodes=a.nodes, peers=a.peers, etcd=a.etcd, keep=a.keep, node__fragment_late_ms=500, node__connect_ms=500,
                 node__sync_late_ms=2000, node__backoff_ms=100)
    except (netns.NotPermitted, netns.Missing) as e:
        print(f"this machine allows no network namespaces: {e}", file=sys.stderr)
        return SKIP
    with c:
        demo = Demo(c)
        ok = demo.run()
        if a.keep:
            say(f"   files are in {c.dir}")
    say(f"{'nothing was lost' if ok else 'SOMETHING WAS LOST'}; {time.monotonic() - demo.begin:.0f} s, nothing is left running")
    return 0 if ok else 1
