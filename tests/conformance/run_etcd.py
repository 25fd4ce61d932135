#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the suite of metadata engines against a real etcd: of one member, or of three whose leader is killed meanwhile."""
import argparse
import os
import pathlib
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "lib"))
import etcd  # noqa: E402


def kill_leaders(e, done, count):
    """SIGKILL to whoever leads, twice a second apart from its restart, until the suite has ended."""
    while not done.wait(1.0):
        leader = e.leader()
        if leader:
            leader.kill()
            count.append(leader.name)
            if done.wait(1.5):
                return
            leader.start()


def main():
    p = argparse.ArgumentParser()
    p.add_argument("suite")
    p.add_argument("--members", type=int, default=1)
    p.add_argument("--kill-leaders", action="store_true")
    p.add_argument("--freeze-one", action="store_true", help="one member is stopped all the time")
    a = p.parse_args()
    if not etcd.AVAILABLE:
        print("etcd is not installed")
        return 77
    with etcd.Etcd(a.members) as e:
        done, killed = threading.Event(), []
        if a.freeze_one:
            next(m for m in e.members if m is not e.leader()).freeze()
        if a.kill_leaders:
            threading.Thread(target=kill_leaders, args=(e, done, killed), daemon=True).start()
        start = time.monotonic()
        code = subprocess.run([a.suite], env=dict(os.environ, CAIRN_TEST_ETCD=e.endpoints), timeout=150, check=False).returncode
        done.set()
        print(f"{a.members} members, leaders killed: {' '.join(killed) or 'none'}, {time.monotonic() - start:.1f} s")
        if code:
            for m in e.members:
                print(f"--- {m.name}\n{m.tail()}")
        return code


if __name__ == "__main__":
    sys.exit(main())
