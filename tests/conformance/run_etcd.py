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


def password_file(e, text):
    path = e.dir / f"password-{text}"
    path.write_text(text + "\n")
    path.chmod(0o600)
    return str(path)


def enable_login(e):
    """A root user as etcd wants one, and the suite logs in as it."""
    m = e.leader()
    for path, body in (("user/add", {"name": "root", "password": "right"}), ("role/add", {"name": "root"}),
                       ("user/grant", {"user": "root", "role": "root"}), ("enable", {})):
        assert m.call("/v3/auth/" + path, body) is not None, path
    return {"CAIRN_TEST_ETCD_USER": "root", "CAIRN_TEST_ETCD_PASSWORD_FILE": password_file(e, "right")}


def compact(e):
    """Some history, and then none of it."""
    m = e.leader()
    for i in range(10):
        answer = m.call("/v3/kv/put", {"key": "YQ==", "value": "Yg=="})
        assert answer, i
    assert m.call("/v3/kv/compaction", {"revision": answer["header"]["revision"], "physical": True}) is not None
    return {"CAIRN_TEST_COMPACTED": "1", "CAIRN_TEST_ONLY": "test_a_watch_outlives_compaction"}


def must_fail(suite, env):
    """Without the right credentials nothing may pass."""
    env = env | {"CAIRN_TEST_MS": "500", "CAIRN_TEST_ONLY": "test_lists_are_in_order"}
    r = subprocess.run([suite], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert r.returncode != 0 and "PASSED  ] 0 test(s)" in r.stdout + r.stderr, r.stdout[-2000:] + r.stderr[-2000:]


def main():
    p = argparse.ArgumentParser()
    p.add_argument("suite")
    p.add_argument("--members", type=int, default=1)
    p.add_argument("--kill-leaders", action="store_true")
    p.add_argument("--tls", action="store_true", help="with client certificates; another authority's is refused")
    p.add_argument("--login", action="store_true", help="with user and password; a wrong one is refused")
    p.add_argument("--compacted", action="store_true", help="the history is gone; only the test of that")
    p.add_argument("--freeze-one", action="store_true", help="one member is stopped all the time")
    a = p.parse_args()
    if not etcd.AVAILABLE:
        print("etcd is not installed")
        return 77
    with etcd.Etcd(a.members, tls=a.tls) as e:
        env = dict(os.environ, CAIRN_TEST_ETCD=e.endpoints)
        if a.tls:
            env |= {"CAIRN_TEST_ETCD_CA": e.tls["ca"], "CAIRN_TEST_ETCD_CERT": e.tls["cert"], "CAIRN_TEST_ETCD_KEY": e.tls["key"]}
            must_fail(a.suite, env | {"CAIRN_TEST_ETCD_CERT": e.tls["other-cert"], "CAIRN_TEST_ETCD_KEY": e.tls["other-key"]})
        if a.login:
            env |= enable_login(e)
            must_fail(a.suite, env | {"CAIRN_TEST_ETCD_PASSWORD_FILE": password_file(e, "wrong")})
        if a.compacted:
            env |= compact(e)
        done, killed = threading.Event(), []
        if a.freeze_one:
            next(m for m in e.members if m is not e.leader()).freeze()
        if a.kill_leaders:
            threading.Thread(target=kill_leaders, args=(e, done, killed), daemon=True).start()
        start = time.monotonic()
        code = subprocess.run([a.suite], env=env, timeout=150, check=False).returncode
        done.set()
        print(f"{a.members} members, leaders killed: {' '.join(killed) or 'none'}, {time.monotonic() - start:.1f} s")
        if code:
            for m in e.members:
                print(f"--- {m.name}\n{m.tail()}")
        return code


if __name__ == "__main__":
    sys.exit(main())
