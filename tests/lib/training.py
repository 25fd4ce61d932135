# SPDX-License-Identifier: Apache-2.0
"""One start of the example's training program, over one node or several; its lines as they come."""
import os
import pathlib
import re
import signal
import threading
import time


def children_of(pid):
    """Whichever of its threads started them."""
    try:
        return [int(p) for task in pathlib.Path(f"/proc/{pid}/task").iterdir() for p in (task / "children").read_text().split()]
    except OSError:
        return []


def kill_with_children(process):
    """SIGKILL for a launcher and its ranks; for the launcher first, or it would start them again."""
    if process.poll() is not None:
        return
    ranks = children_of(process.pid)
    process.kill()
    for pid in ranks:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    process.wait(10)


class Run:
    def __init__(self, cluster, name, start_id, ranks, steps, every=10, nodes=None, job="demo"):
        """start_id None: it only trains, and saves nothing."""
        self.lines, self.loss, self.sum = [], cluster.dir / f"{name}.loss", cluster.dir / f"{name}.sum"
        self.sum.unlink(missing_ok=True)
        args = [cluster.build / "client" / "examples" / "train", "--job", job, "--ranks", ranks, "--steps", steps, "--save-every", every,
                "--loss-log", self.loss, "--checksum", self.sum, "--socket", ",".join(n.socket for n in nodes or cluster.nodes)]
        self.process = cluster.spawn([*args, *(["--start-id", start_id] if start_id else ["--no-save"])])
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    def read_until(self, pattern, seconds=90, after=0):
        """The first line from number `after` on that matches, as soon as it is there."""
        end = time.monotonic() + seconds
        while True:
            ended = not self.thread.is_alive()
            for line in self.lines[after:]:
                if match := re.search(pattern, line):
                    return match
            after = max(after, len(self.lines) - 1)
            if ended or time.monotonic() > end:
                break
            time.sleep(0.01)
        raise RuntimeError(f"the training program {'ended before it said' if ended else 'did not say in time'} {pattern!r}:\n" +
                           "\n".join(self.lines[-10:]) + (self.process.stderr.read() if ended else ""))

    def finish(self, seconds=150):
        self.process.wait(seconds)
        self.thread.join(10)
        if self.process.returncode != 0:
            raise RuntimeError("the training program failed:\n" + "\n".join(self.lines[-10:]) + self.process.stderr.read())

    def ranks(self):
        return children_of(self.process.pid)

    def kill_ranks(self):
        """SIGKILL for the launcher and its children."""
        kill_with_children(self.process)
        self.thread.join(10)

    def stalls(self):
        return [float(m.group(1)) for line in self.lines if (m := re.search(r"stall ([\d.]+) ms", line))]
