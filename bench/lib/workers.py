# SPDX-License-Identifier: Apache-2.0
"""Programs that are told line by line and answer with one line of JSON, and what they and the daemons cost."""
import json
import os
import pathlib
import select
import subprocess
import sys
import threading
import time

from cluster import _die_with_parent as die_with_parent

TICK = os.sysconf("SC_CLK_TCK")


class Worker:
    """One such program: its first line is an answer too. Every answer has a deadline."""

    def __init__(self, command, env=None, seconds=180):
        self.name = pathlib.Path(str(command[-1] if command[0] == sys.executable else command[0])).name
        self.errors = []
        self.process = subprocess.Popen([str(c) for c in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        env={**os.environ, **(env or {})}, preexec_fn=die_with_parent)
        self.buffer = b""
        self.reader = threading.Thread(target=self._read_errors, daemon=True)
        self.reader.start()
        self.hello = self.answer(seconds)

    def _read_errors(self):
        for line in self.process.stderr:
            self.errors = [*self.errors[-40:], line.decode(errors="replace")]

    @property
    def pid(self):
        return self.process.pid

    def answer(self, seconds=180):
        end = time.monotonic() + seconds
        while b"\n" not in self.buffer:
            left = end - time.monotonic()
            ready = left > 0 and select.select([self.process.stdout], [], [], left)[0]
            more = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            if not more:
                self.end()
                why = "ended" if ready else f"gave no answer within {seconds} s"
                raise RuntimeError(f"{self.name} {why}: {''.join(self.errors)[-1500:]}")
            self.buffer += more
        text, self.buffer = self.buffer.split(b"\n", 1)
        return json.loads(text)

    def tell(self, line):
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def ask(self, line, seconds=180):
        self.tell(line)
        return self.answer(seconds)

    def end(self):
        if self.process.poll() is None:
            try:
                self.tell("quit")
                self.process.stdin.close()
            except OSError:
                pass
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.reader.join(5)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()


def _fields(pid):
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def cpu_s(pid):
    """User and system time of a process, all threads."""
    f = _fields(pid)
    return (int(f[11]) + int(f[12])) / TICK


def tree_cpu_s(pid):
    """The same with all its children, living and waited for."""
    children = {}
    for p in filter(str.isdigit, os.listdir("/proc")):
        try:
            f = _fields(p)
        except OSError:
            continue
        children.setdefault(int(f[1]), []).append((int(p), sum(map(int, f[11:15])) / TICK))

    def below(parent):
        return sum(used + below(child) for child, used in children.get(parent, []))

    return sum(map(int, _fields(pid)[11:15])) / TICK + below(pid)


def resident_beyond_arena(pid):
    """Resident bytes of a daemon without its arenas."""
    total, inside = 0, False
    for line in pathlib.Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if line[:1] in "0123456789abcdef" and "-" in line.split()[0]:
            inside = "memfd:cairn-arena" in line
        elif line.startswith("Rss:") and not inside:
            total += int(line.split()[1]) << 10
    return total
