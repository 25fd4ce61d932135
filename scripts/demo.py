# SPDX-License-Identifier: Apache-2.0
"""The demo: six peers, one node daemon, a training run of two ranks; everything on the node and two peers are killed; the run resumes and
ends bit-identical to one that nothing happened to. Uses the same process starter as the cluster tests."""
import argparse
import pathlib
import re
import signal
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests" / "lib"))
from cluster import Cluster, wait_until  # noqa: E402

RANKS, EVERY = 2, 10


def say(text):
    print(text, flush=True)


class Run:
    """One start of the training program."""

    def __init__(self, cluster, name, start_id, steps, save=True):
        self.c, self.lines = cluster, []
        self.loss = cluster.dir / f"{name}.loss"
        self.sum = cluster.dir / f"{name}.sum"
        args = [cluster.build / "client" / "examples" / "train", "--job", "demo", "--ranks", RANKS, "--steps", steps, "--save-every",
                EVERY, "--loss-log", self.loss, "--checksum", self.sum]
        args += ["--start-id", start_id] if save else ["--no-save"]
        self.process = cluster.spawn(args)

    def read_until(self, pattern, seconds=90):
        """Reads the program's lines until one matches."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            line = self.process.stdout.readline()
            if not line:
                break
            self.lines.append(line.rstrip())
            match = re.search(pattern, line)
            if match:
                return match
        raise RuntimeError(f"the training program ended, or did not say {pattern!r}:\n" + "\n".join(self.lines[-10:]) +
                           self.process.stderr.read())

    def finish(self, seconds=150):
        out, err = self.process.communicate(timeout=seconds)
        self.lines += out.splitlines()
        if self.process.returncode != 0:
            raise RuntimeError("the training program failed:\n" + "\n".join(self.lines[-10:]) + err)

    def kill_ranks(self):
        """SIGKILL for the launcher's children and the launcher itself."""
        children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        self.process.send_signal(signal.SIGKILL)
        for pid in children:
            try:
                __import__("os").kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait(10)

    def stalls(self):
        return [float(m.group(1)) for line in self.lines if (m := re.search(r"stall ([\d.]+) ms", line))]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--steps", type=int, default=120)
    a = parser.parse_args()
    begin = time.monotonic()
    with Cluster(a.build, peers=6, keep=a.keep) as c:
        say(f"1. reference: {a.steps} steps with {RANKS} ranks, no checkpoints, nothing happens to it")
        reference = Run(c, "reference", "", a.steps, save=False)
        reference.finish()
        say("2. six storage peers and one node daemon, as processes on loopback")
        c.start_all()
        say(f"3. the same training, saved every {EVERY} steps")
        first = Run(c, "run", "first", a.steps)
        saved = first.read_until(r"step %d: rank \d saved ([\d.]+) Mi?B, stall ([\d.]+) ms" % (a.steps // 2))
        say(f"   at step {a.steps // 2}: {saved.group(1)} MiB a rank, stall {saved.group(2)} ms; now, while that save is on its way:")
        first.kill_ranks()
        c.node.kill()
        for p in c.peers[:2]:
            p.kill()
        say("4. kill -9: both ranks, the node daemon (its shared memory is gone), two of the six peers")
        c.node.start()
        c.wait_peers_up(4)
        listed = wait_until("the list of checkpoints", lambda: c.query("list", "--job", "demo"))
        steps = [k["step"] for k in listed["checkpoints"] if k["state"] == "committed"]
        say(f"5. the node daemon is back with four peers; committed steps: {', '.join(map(str, steps))}")
        second = Run(c, "run", "second", a.steps)
        resumed = second.read_until(r"resume[sd] from step (\d+): ([\d.]+) Mi?B in ([\d.]+) ms")
        say(f"6. both ranks resume from step {resumed.group(1)}: {resumed.group(2)} MiB restored in {resumed.group(3)} ms, "
            "fragments of the dead peers rebuilt from parity")
        second.finish()
        say(f"7. trained to step {a.steps}; stalls {min(second.stalls()):.1f} to {max(second.stalls()):.1f} ms")
        same_loss = reference.loss.read_bytes() == second.loss.read_bytes()
        same_sum = reference.sum.read_bytes() == second.sum.read_bytes()
        lines = len(reference.loss.read_text().splitlines())
        say(f"8. compared with the reference: {lines} losses {'identical' if same_loss else 'DIFFER'} to the last bit, weights and Adam "
            f"state {'identical' if same_sum else 'DIFFER'}")
        if a.keep:
            say(f"   files are in {c.dir}")
        ok = same_loss and same_sum and lines == a.steps
    say(f"{'nothing was lost' if ok else 'SOMETHING WAS LOST'}; {time.monotonic() - begin:.0f} s, nothing is left running")
    sys.exit(0 if ok else 1)


main()
