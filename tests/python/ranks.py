# SPDX-License-Identifier: Apache-2.0
"""Ranks as real processes.

    results = run_ranks(4, "reshard_ranks:save", {"job": job}, timeout=60)

starts four Python processes in the environment that torchrun would give them; each calls the function `save` of the module
reshard_ranks (found beside this file) with the keyword arguments and hands back what it returns as JSON. As a program this
file is one rank.
"""
import importlib
import itertools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid

HERE = pathlib.Path(__file__).resolve().parent
_starts = itertools.count(1)


class RankFailed(RuntimeError):
    """A rank ended otherwise than expected; the message has what all of them wrote to stderr."""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environment(rank, world, port, start):
    return dict(os.environ, RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world),
                MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID=start, TORCHELASTIC_RESTART_COUNT="0",
                OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo",
                PYTHONPATH=os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", ""), str(HERE.parents[1] / "client/python/src")]))


class Ranks:
    """Processes under way. Left by `with`, all are gone."""

    def __init__(self, world, function, arguments=None, start=None):
        self.world, self.function = world, function
        self.dir = tempfile.TemporaryDirectory(prefix="cairn-ranks-")
        port, start = free_port(), start or f"start-{next(_starts)}-{uuid.uuid4().hex[:8]}"
        self.processes = []
        for rank in range(world):
            with open(self._path(rank, "err"), "wb") as err:
                command = [sys.executable, str(HERE / "ranks.py"), function, json.dumps(arguments or {}), self._path(rank, "out")]
                self.processes.append(subprocess.Popen(command, env=environment(rank, world, port, start), stderr=err, stdout=err))

    def _path(self, rank, what):
        return os.path.join(self.dir.name, f"{rank}.{what}")

    def errors(self):
        return "\n".join(f"--- rank {r}\n" + pathlib.Path(self._path(r, "err")).read_text(errors="replace")[-6000:] for r in range(self.world))

    def kill(self, rank, sig=signal.SIGKILL):
        self.processes[rank].send_signal(sig)

    def wait(self, timeout=60.0, expect=0):
        """The results of all ranks, in order. expect: exit code of each, or None for any (a killed rank's result is None)."""
        end = time.monotonic() + timeout
        for rank, p in enumerate(self.processes):
            try:
                p.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise RankFailed(f"{self.function}: rank {rank} did not end within {timeout} s\n{self.errors()}") from None
            if expect is not None and p.returncode != expect:
                self._end(2.0)  # what the others say may be the cause
                raise RankFailed(f"{self.function}: rank {rank} ended with {p.returncode}\n{self.errors()}")
        return [self._result(rank) for rank in range(self.world)]

    def _result(self, rank):
        path = pathlib.Path(self._path(rank, "out"))
        return json.loads(path.read_text()) if path.exists() else None

    def _end(self, grace):
        end = time.monotonic() + grace
        for p in self.processes:
            try:
                p.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._end(0.0)
        self.dir.cleanup()


def run_ranks(world, function, arguments=None, timeout=60.0, start=None):
    with Ranks(world, function, arguments, start) as ranks:
        return ranks.wait(timeout)


def main():
    module, name = sys.argv[1].split(":")
    result = getattr(importlib.import_module(module), name)(**json.loads(sys.argv[2]))
    with open(sys.argv[3] + ".new", "w") as f:
        json.dump(result, f)
    os.rename(sys.argv[3] + ".new", sys.argv[3])


if __name__ == "__main__":
    main()
