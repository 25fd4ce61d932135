# SPDX-License-Identifier: Apache-2.0
"""What the tests of the Python package share: a real daemon for each module, and a fresh job for each test.

    PYTHONPATH=client/python/src CAIRN_LIBRARY=build/dev/client/libcairn.so.0 python -m pytest tests/python/test_X.py

The build is the one that CAIRN_LIBRARY lies in.
"""
import itertools
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "client" / "python" / "src"), str(ROOT / "tests" / "lib"), str(pathlib.Path(__file__).parent)]
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: OpenMP's threads do not survive the forks of ranks
LIBRARY = pathlib.Path(os.environ.setdefault("CAIRN_LIBRARY", str(ROOT / "build" / "dev" / "client" / "libcairn.so.0"))).resolve()

from cluster import Cluster  # noqa: E402


class Daemon:
    """One cairnd with both roles. Clients of this process and its children find it through CAIRN_SOCKET."""

    def __init__(self, **options):
        self.build = LIBRARY.parents[1]
        self.all = Cluster(self.build, peers=0, both_roles=True, **options)
        self.root = self.all.dir
        self.socket = self.all.node.socket

    def start(self):
        self.all.start_all()
        return self

    def kill(self):
        self.all.node.kill()

    def restart(self):
        """After kill(), or instead of it."""
        self.all.node.kill()
        self.all.node.start()
        self.all.wait_peers_up(1)

    def log(self):
        return self.all.node.tail(200)

    def cairn(self, *args, seconds=60.0, **kwargs):
        """Runs the tool to its end."""
        command = [str(self.build / "client" / "tool" / "cairn"), *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False, **kwargs)

    def close(self):
        self.all.close()


@pytest.fixture(scope="module")
def cluster():
    daemon = Daemon()
    before = os.environ.get("CAIRN_SOCKET")
    os.environ["CAIRN_SOCKET"] = daemon.socket
    try:
        yield daemon.start()
    finally:
        daemon.close()
        os.environ.pop("CAIRN_SOCKET")
        if before is not None:
            os.environ["CAIRN_SOCKET"] = before


_numbers = itertools.count(1)


@pytest.fixture
def job():
    return f"job-{next(_numbers)}"
