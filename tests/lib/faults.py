# SPDX-License-Identifier: Apache-2.0
"""What a storm does to a wide cluster: each fault names its kind and victim, begins, lasts, and ends with everything as it was.

A fault says what it hurts: a storm keeps the number of hurt peers within the margin, asks only nodes that are not hurt, and lets etcd keep
a majority.
"""
import random


class Fault:
    """kind: for the table; part: the daemon, rank or member; lasts: it goes on until end()."""

    kind, group, lasts = "", "", True

    def __init__(self, storm, part):
        self.storm, self.c, self.part = storm, storm.c, part
        self.random = random.Random(storm.random.getrandbits(32))  # its own: the storm's next choice depends on no file or time

    @classmethod
    def possible(cls, storm):
        """The parts this can happen to; none: the machine or the cluster has no such thing."""
        return {"peer": storm.c.peers, "node": storm.c.nodes, "etcd": storm.members(), "rank": storm.trainer.ranks}[cls.group]

    def name(self):
        return f"{self.kind} {self.part.name if self.group != 'rank' else self.storm.trainer.ranks.index(self.part)}"

    def begin(self):
        raise NotImplementedError

    def end(self):
        pass

    def steps(self):
        """Checkpoints that had better be looked at now."""
        return []


class Kill(Fault):
    def begin(self):
        self.part.kill()

    def end(self):
        self.part.start()


class Stop(Fault):
    """SIGSTOP: it answers nothing, and its connections stay."""

    def begin(self):
        self.part.freeze()

    def end(self):
        self.part.thaw()


class Unplug(Fault):
    def begin(self):
        self.part.host.unplug()

    def end(self):
        self.part.host.plug()


class Cut(Fault):
    """What it sends is lost; it still hears everybody."""

    def begin(self):
        self.part.host.cut()

    def end(self):
        self.part.host.mend()


class Slow(Fault):
    @classmethod
    def possible(cls, storm):
        return [] if "tbf" in storm.c.net.missing else super().possible(storm)

    def begin(self):
        self.part.host.shape(self.random.choice([1, 4, 20]))

    def end(self):
        self.part.host.unshape()


class PeerKill(Kill):
    kind, group = "peer killed", "peer"


class PeerStop(Stop):
    kind, group = "peer stopped", "peer"


class PeerUnplug(Unplug):
    kind, group = "peer unplugged", "peer"


class PeerCut(Cut):
    kind, group = "peer cut one way", "peer"


class PeerSlow(Slow):
    kind, group = "peer slow", "peer"


class PeerFull(Fault):
    kind, group = "peer's disk full", "peer"

    @classmethod
    def possible(cls, storm):
        return [p for p in storm.c.peers if p.disk]

    def begin(self):
        self.part.disk.fill(leave_bytes=self.random.choice([0, 1 << 16, 4 << 20]))

    def end(self):
        self.part.disk.clear()


class PeerFlip(Fault):
    """Bits of one peer's files are turned; what nobody repaired meanwhile is turned back, so that damage never adds up over peers."""

    kind, group = "peer's bits flipped", "peer"

    def begin(self):
        self.flips = self.c.flip_bits(self.part, self.random, self.random.randint(1, 20))

    def end(self):
        self.c.unflip(self.flips)

    def steps(self):
        return {self.c.step_of(path) for path, *_ in self.flips}


class NodeKill(Kill):
    kind, group = "node killed", "node"


class NodeStop(Stop):
    kind, group = "node stopped", "node"


class NodeUnplug(Unplug):
    kind, group = "node unplugged", "node"


class NodeCut(Cut):
    kind, group = "node cut one way", "node"


class NodeSlow(Slow):
    kind, group = "node slow", "node"


class EtcdKill(Kill):
    kind, group = "etcd killed", "etcd"


class EtcdLeaderKill(Kill):
    kind, group = "etcd leader killed", "etcd"

    @classmethod
    def possible(cls, storm):
        leader = storm.c.etcd.leader() if storm.members() else None
        return [leader] if leader else []


class EtcdStop(Stop):
    kind, group = "etcd stopped", "etcd"


class EtcdUnplug(Unplug):
    kind, group = "etcd unplugged", "etcd"


class RankKill(Fault):
    kind, group, lasts = "rank killed", "rank", False

    def begin(self):
        self.part.kill()
        self.storm.restart_trainer()


class JobKill(RankKill):
    kind = "job killed"

    def begin(self):
        self.storm.trainer.kill()
        self.storm.restart_trainer()


class RankStop(Stop):
    kind, group = "rank stopped", "rank"


# As often as they stand here.
KINDS = [RankKill, JobKill, RankStop, NodeKill, NodeKill, NodeStop, NodeUnplug, NodeCut, NodeSlow, PeerKill, PeerKill, PeerStop, PeerUnplug,
         PeerCut, PeerSlow, PeerFull, PeerFull, PeerFlip, PeerFlip, EtcdKill, EtcdLeaderKill, EtcdStop, EtcdUnplug]
