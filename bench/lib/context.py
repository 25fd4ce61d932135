# SPDX-License-Identifier: Apache-2.0
"""What all families of measurements share: sizes, places, daemons, the rank and the limits of the machine."""
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "lib"))
from cluster import Cluster  # noqa: E402
from workers import Worker  # noqa: E402

MIB, GB = 1 << 20, 1e9


class Sizes:
    """A full run, a quick one."""

    def __init__(self, quick):
        self.pairs = 6 if quick else 15  # interleaved: what is judged has so many
        self.tail = 100  # saves for a 99th percentile
        self.tail_bytes = (64 if quick else 256) * MIB
        self.touched_bytes = (128 if quick else 512) * MIB
        self.llama_bytes = 256 * MIB if quick else 0  # of one layer of Llama-3-8B; 0: all of it
        self.probe_mib = 128 if quick else 1024  # most that a probe of the disk writes between two saves
        self.disk_mib = 256 if quick else 1024
        self.codec_mib = 32 if quick else 256
        self.warm_stores = 3 if quick else 5  # saves until files are written over
        self.growth = [64, 256, 512] if quick else [64, 1024, 4096]
        self.ranks, self.rank_mib = ([1, 4], 32) if quick else ([1, 8], 128)
        self.cycles, self.every, self.neighbour_mib = (3, 25, 64) if quick else (15, 40, 256)  # 1,200 steps with saves
        self.disk_gib = 4 if quick else 16  # that must be free
        self.model = ["--layers", "2", "--vocab", "8192", "--seconds", "12", "--small-mib", "64"] if quick else \
                     ["--layers", "12", "--vocab", "50257", "--seconds", "60", "--small-mib", "256"]


class Context:
    def __init__(self, build, venv, scratch, report, quick, threads, budget):
        self.budget = budget
        self.build, self.venv, self.scratch, self.report, self.quick = build, venv, scratch, report, quick
        self.sizes, self.threads = Sizes(quick), threads
        self.data = ROOT / "build" / "bench-data" / ("quick" if quick else "full")
        self.floors = {}  # measured in this run, for formulas
        self.clusters = 0

    def turns(self, n=0, warm=0, least=None, weight=1):
        """So many turns (as many as judged pairs need), after some to warm up, fewer when the time is over: see budget.py. Yields whether the turn counts."""
        n = n or self.sizes.pairs
        least = min(n, 3 if self.quick else self.sizes.pairs) if least is None else least
        bare = min(n, 3 if self.quick else 6)
        for i in self.budget.turns(n + warm, least + warm, bare + warm, weight, self.report.say):
            yield i >= warm

    def table(self, name):
        return self.data / f"{name}.table"

    @property
    def state(self):
        return self.data / "state.bin"

    @functools.cached_property
    def tracks(self):
        """Whether this build copies changed pages only when it is asked to."""
        with self.rank(bytes_=MIB, track=True) as rank:
            return rank.hello["tracks"]

    def program(self, name):
        path = self.build / "bench" / name
        return path if path.exists() else None

    def cluster(self, peers=1, codecs=None, bytes_=1 << 30, arenas=1, **options):
        """Fresh daemons. Two checkpoints are kept, so that the disk stays small."""
        self.clusters += 1
        if codecs:
            options["node__codecs"] = codecs
        options.setdefault("retention__rule", "last=2")
        common = {"peer__scrub_mib_s": 0, **{k: options.pop(k) for k in list(options) if k.startswith(("daemon__", "peer__"))}}
        return Cluster(self.build, peers=peers, directory=self.scratch / f"cluster{self.clusters}", common=common, node__checkpoint_s=600,
                       node__repair_every_s=0, node__arena_max_mib=int(bytes_ * 2.5 * arenas) // MIB + 256, retention__interval_s=1, **options)

    def rank(self, cluster=None, table="gpt2", bytes_=0, threads=None, snapshots=1, job="bench", rank=0, world=1, start_id=None,
             observer=False, track=False):
        command = [self.build / "bench" / "bench-workload", "--table", self.table(table), "--data", self.state, "--bytes", bytes_,
                   "--threads", threads or self.threads, "--snapshots", snapshots, "--job", job]
        if cluster:
            command += ["--socket", cluster.node.socket]
        if world > 1:
            command += ["--rank", rank, "--world", world, "--start-id", start_id]
        return Worker(command + (["--observer"] if observer else []) + (["--track"] if track else []))

    def torch(self, table="gpt2"):
        where = self.scratch / "torch"
        where.mkdir(exist_ok=True)
        return Worker([self.venv, ROOT / "bench" / "lib" / "torch_peer.py", "--table", self.table(table), "--data", self.state,
                       "--directory", where, "--threads", self.threads])

    def drop_caches(self):
        """Returns whether it could."""
        try:
            os.sync()
            pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
            return True
        except OSError:
            return False


def settle(cluster):
    """What was late at the commit is stored too: the daemons are idle."""
    cluster.wait_complete(60)


def saved(rank):
    """One save to its commit: (stall, commit, CPU of the trainer)."""
    a = rank.ask("save")
    b = rank.ask("commit")
    return a["stall_s"], b["commit_s"][-1], a["cpu_s"] + b["cpu_s"]


def json_of(command, seconds, accept=(0,)):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=seconds)
    if done.returncode not in accept:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr[-600:]}")
    return json.loads(done.stdout)


def free_bytes(directory):
    return shutil.disk_usage(directory).free
