# SPDX-License-Identifier: Apache-2.0
"""Ranks that save without a pause (cluster-client), over one node or several, and a book of what they were told.

The contents of a save are a function of (seed, step, rank), and every start of the job has its own number as seed. So the book knows the
right bytes of every committed step, and a checkpoint that mixes two saves, two starts or two ranks cannot pass.
"""
import signal
import threading
import time

from cluster import wait_until


CODECS = ["raw", "auto", "lz4", "float", "dense"]


def encoding(seed, codecs=None, chain=None):
    """How a storm's nodes encode: by its seed, unless it is said. 30 seeds in a row have every combination."""
    chain = [0, 2, 4][seed % 3] if chain is None else chain
    return {"node__codecs": codecs or CODECS[seed % len(CODECS)], "node__delta_chain": chain, "node__share_unchanged": seed // 3 % 2 * 5}


def deltas(cluster, steps):
    """How many of these checkpoints of the job "test" have a base."""
    shown = [cluster.tool("show", "test", str(s), check=False) for s in steps]
    return sum(any(shard["base"] for shard in k["shards"]) for k in shown if k)


class Book:
    """What the ranks of all starts said."""

    def __init__(self):
        self.told = {}  # step: the start whose rank was told that it is committed
        self.starts = {}  # incarnation: its start
        self.longest = 0.0  # seconds that a living rank, while it was not stopped, said nothing
        self.twice = []  # steps that ranks of two starts were told
        self.failures = []  # the lines

    def note(self, start, line):
        words = line.split()
        if words and words[0] == "opened":
            self.starts[int(words[1])] = start
        elif words and words[0] == "committed":
            step = int(words[1])
            if self.told.setdefault(step, start) != start:
                self.twice.append(step)
        elif words and words[0] in ("failed", "error"):
            self.failures.append(line.strip())

    def seed(self, step, incarnation):
        """Whose bytes a listed step must have."""
        wait_until(f"a rank that opened incarnation {incarnation}, which step {step} is of", lambda: incarnation in self.starts, 10)
        start = self.starts[incarnation]
        assert self.told.get(step, start) == start, f"step {step} was told by start {self.told[step]}, and is of start {start}"
        return start


class Rank:
    """One process, and a thread that reads its lines."""

    def __init__(self, process, start, book):
        self.process, self.start, self.book, self.last_line = process, start, book, ""
        self.since = time.monotonic()  # its last line, or when it went on after a stop
        self.stopped = False
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        for line in self.process.stdout:
            self.quiet_for()
            self.since, self.last_line = time.monotonic(), line.rstrip()
            self.book.note(self.start, line)

    def quiet_for(self):
        quiet = 0 if self.stopped else time.monotonic() - self.since
        self.book.longest = max(self.book.longest, quiet)
        return quiet

    def alive(self):
        return self.process.poll() is None

    def kill(self):
        if self.alive():
            self.process.send_signal(signal.SIGKILL)

    def freeze(self):
        self.stopped = True
        if self.alive():
            self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.since = time.monotonic()
        if self.alive():
            self.process.send_signal(signal.SIGCONT)
        self.stopped = False


class Trainer:
    """All ranks of one start; rank r is on node r // per_node."""

    def __init__(self, cluster, start, book, per_node=2, nodes=None, size=3 << 20, timeout_ms=20000, prefix="start", job=None, count=1000000, pause_ms=0):
        nodes = nodes or cluster.nodes
        self.start, self.world = start, per_node * len(nodes)
        args = [cluster.build / "tests" / "cluster" / "cluster-client", "save", "--bytes", size, "--world", self.world, "--start-id",
                f"{prefix}-{start}", "--seed", start, "--count", count, "--timeout", timeout_ms, "--pause", pause_ms, *(["--job", job] if job else [])]
        self.ranks = [Rank(cluster.spawn([*args, "--rank", r], nodes[r // per_node]), start, book) for r in range(self.world)]

    def ended(self):
        return [r for r in self.ranks if not r.alive()]

    def kill(self):
        for r in self.ranks:
            r.kill()

    def wait(self, seconds=60):
        """The ranks end by themselves (count)."""
        end = time.monotonic() + seconds
        for r in self.ranks:
            r.process.wait(max(0.1, end - time.monotonic()))
            r.thread.join(30)

    def join(self):
        """Kills what still runs; every line that was written has been read."""
        self.kill()
        for r in self.ranks:
            r.process.wait(30)
            r.thread.join(30)
