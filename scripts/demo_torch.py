# SPDX-License-Identifier: Apache-2.0
"""scripts/demo --torch: a GPT in PyTorch on two ranks (client/python/examples/train_gpt.py), once undisturbed and once with a rank, and then
everything, killed with SIGKILL. The losses must be the same to the last bit. Each save of the undisturbed run is made in another way in turn,
so that what Cairn's saves cost stands beside torch.save() and dcp.async_save() for the same state in the same minutes."""
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "lib"), str(ROOT / "bench" / "lib")]
import environment  # noqa: E402
from cluster import Cluster, wait_until  # noqa: E402
from training import kill_with_children  # noqa: E402

RANKS, EVERY = 2, 2
PACKAGES = ["torch==2.13.0", "numpy"]
WAYS = {"cairn": "cairn.Checkpointer.save", "torch": "torch.save and fsync", "dcp-async": "dcp.async_save",
        "dcp-async-kept": "dcp.async_save, memory kept"}
# About 11 million parameters, 120 MiB with the moments; few bytes in a batch, so that a step takes a fraction of a second.
MODEL = ["--layers", "6", "--width", "384", "--heads", "6", "--context", "32", "--batch", "4"]


def say(text):
    print(text, flush=True)


class Training:
    """One torchrun; its lines as they come. It starts its ranks again `restarts` times when one of them dies."""

    def __init__(self, demo, job, restarts, *args):
        self.lines, self.losses = [], demo.c.dir / f"{job}.losses"
        command = [demo.python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS), "--max-restarts", str(restarts),
                   ROOT / "client" / "python" / "examples" / "train_gpt.py", "--job", job, "--steps", str(demo.steps), "--every", str(EVERY),
                   "--parallel", demo.parallel, "--device", "cpu", "--losses", self.losses, *MODEL, *args]
        env = dict(os.environ, CAIRN_SOCKET=demo.c.node.socket, OMP_NUM_THREADS="1", PYTHONUNBUFFERED="1", **demo.env)
        self.process = subprocess.Popen([str(a) for a in command], env=env, cwd=demo.c.dir, text=True, start_new_session=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    def read_until(self, pattern, seconds=90):
        def look():
            ended = not self.thread.is_alive()
            for line in list(self.lines):
                if match := re.search(pattern, line):
                    return match
            if ended:
                raise RuntimeError(f"the training ended before it said {pattern!r}:\n" + "\n".join(self.lines[-40:]))
        return wait_until(f"the training to say {pattern!r}; its last line: {self.lines[-1:]}", look, seconds)

    def finish(self, seconds=150):
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"the training did not end within {seconds} s:\n" + "\n".join(self.lines[-40:])) from None
        self.thread.join(10)
        if self.process.returncode != 0:
            raise RuntimeError(f"the training ended with {self.process.returncode}:\n" + "\n".join(self.lines[-40:]))

    def kill(self):
        """SIGKILL for torchrun and its ranks; for torchrun first, or it would start them again."""
        kill_with_children(self.process)
        self.thread.join(10)


def milliseconds(value):
    return f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"


def table(result):
    """A save's stall is that of the rank that it held up longest. The first of each way is apart: what is allocated once is in it."""
    stalls = {way: [max(of_ranks) for of_ranks in zip(*ranks)] for way, ranks in result["stalls_ms"].items()}
    base = statistics.median(stalls["cairn"][1:])
    say(f"   {'':28} {'saves':>5} {'first':>9} {'median':>9} {'longest':>9}   median over Cairn's")
    for way, (first, *others) in stalls.items():
        median = statistics.median(others)
        say(f"   {WAYS[way]:28} {1 + len(others):5} {milliseconds(first):>9} {milliseconds(median):>9} {milliseconds(max(others)):>9}   "
            f"{median / base:.1f}")


class Demo:
    def __init__(self, c, a, python, env):
        self.c, self.python, self.env, self.steps, self.parallel = c, python, env, a.steps, a.parallel
        self.begin, self.n, self.running = time.monotonic(), 0, []

    def step(self, text):
        self.n += 1
        say(f"{self.n}. [{time.monotonic() - self.begin:3.0f} s] {text}")

    def train(self, job, restarts, *args):
        self.running.append(Training(self, job, restarts, *args))
        return self.running[-1]

    def end(self):
        for training in self.running:
            training.kill()

    def latest(self, job):
        listed = wait_until("the list of checkpoints", lambda: self.c.query("list", "--job", job))
        return listed["latest"]

    def undisturbed(self):
        self.step(f"{self.steps} steps that nothing happens to, saved every {EVERY} in four ways that take turns")
        stalls = self.c.dir / "stalls.json"
        run = self.train("undisturbed", 0, "--checkpoint", ",".join(WAYS), "--directory", self.c.dir / "files", "--stalls", stalls)
        run.finish()
        return run, json.loads(stalls.read_text())

    def disturbed(self):
        first, second = self.steps // 3 + 1, 2 * self.steps // 3 // EVERY * EVERY
        self.step(f"the same, saved by Cairn: at step {first} rank {RANKS - 1} kills itself with SIGKILL between forward and backward")
        run = self.train("disturbed", 1, "--kill-at", first)
        run.read_until(r"kill -9 of myself")
        found = run.read_until(r"resumed from step (\d+), read in (\d+) ms")
        say(f"   torchrun started both again; resumed from step {found.group(1)}, read in {found.group(2)} ms, out of this node's memory")
        run.read_until(rf"step {second}: .*stall")
        run.kill()
        self.c.node.kill()
        self.step(f"kill -9 of torchrun, both ranks and cairnd right after the save of step {second}: its memory is gone, too")
        self.c.node.start()
        self.c.wait_peers_up(1)
        say(f"   cairnd is back; the newest committed step is {self.latest('disturbed')}")
        run = self.train("disturbed", 0)
        found = run.read_until(r"resumed from step (\d+), read in (\d+) ms")
        self.step(f"resumed from step {found.group(1)}, read in {found.group(2)} ms, out of the files of cairnd")
        if int(found.group(1)) < second:
            say(f"   (in that time is the wait for somebody who still has step {second}: it was not committed yet, and nobody has it any more)")
        run.finish()
        return run

    def run(self):
        reference, stalls = self.undisturbed()
        other = self.disturbed()
        expected, found = (run.losses.read_text().splitlines() for run in (reference, other))
        same = sum(a == b for a, b in zip(expected[:-1], found[:-1]))
        self.step(f"compared: {same} of {self.steps} losses identical to the last bit; weights, moments and random states of both ranks "
                  f"{'identical' if expected[-1] == found[-1] else 'DIFFER'}")
        self.step(f"for how long a save of {stalls['bytes'] / 2**20:.0f} MiB held up training, in the undisturbed run:")
        table(stalls)
        return expected == found and len(expected) == self.steps + 1


def prepare(build, python):
    """(The Python, what its environment needs): the given one, which has torch, with this tree's package and library by their paths; or one
    that is made under build/, with the package installed as a user does."""
    if python:
        library = pathlib.Path(build).resolve() / "client" / "libcairn.so.0"
        return python, {"PYTHONPATH": str(ROOT / "client" / "python" / "src"), "CAIRN_LIBRARY": str(library)}
    python = environment.venv(ROOT, say, "torch-venv", PACKAGES)
    say("pip install client/python")
    environment.command([python, "-m", "pip", "install", "--quiet", "--force-reinstall", ROOT / "client" / "python"], 300)
    return python, {}


def stopped(number, frame):
    raise SystemExit(128 + number)  # through every "finally"


def main(a):
    signal.signal(signal.SIGTERM, stopped)
    python, env = prepare(a.build, a.python)
    with Cluster(a.build, peers=0, both_roles=True, keep=a.keep, retention__rule="last=3") as c:
        demo = Demo(c, a, python, env)
        try:
            demo.step("a cairnd that is node and storage peer at once, as on a laptop")
            c.start_all()
            c.wait_peers_up(1)
            ok = demo.run()
        finally:
            demo.end()
        if a.keep:
            say(f"   files are in {c.dir}")
    say(f"{'nothing was lost' if ok else 'SOMETHING WAS LOST'}; {time.monotonic() - demo.begin:.0f} s, nothing is left running")
    return 0 if ok else 1
