#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Daemons prove to each other that they hold the cluster's key before a slot is granted.

Catches: a stranger that gets slots, a node that writes to a peer which does not hold the key, a rotation that interrupts saves, a daemon
without a key that listens to the world.
"""
import argparse
import os
import pathlib
import secrets
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "lib"))
from cluster import Cluster, wait_until  # noqa: E402

BYTES = ["--bytes", str(2 << 20)]


def write_keys(path, *lines):
    """As an operator should: a new file takes the old one's place."""
    new = path.with_suffix(".new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w") as f:
        f.write("".join(line + "\n" for line in lines))
    os.replace(new, path)


def key(number):
    return f"{number} {secrets.token_hex(32)}"


def set_key(daemon, path):
    daemon.options.setdefault("fabric", {})["key_file"] = str(path)
    daemon.write_config()


def start_keyed(c, *lines):
    """Every daemon has a file of its own, with the same keys."""
    for d in [*c.nodes, *c.peers]:
        d.keys = d.dir / "keys"
        write_keys(d.keys, *lines)
        set_key(d, d.keys)
    c.start_all()


def save(c, job, first):
    c.client("save", "--job", job, "--start-id", f"s{first}", "--first", first, "--count", 1, *BYTES)


def keys_rotate_under_saves(build):
    old, new = key(1), key(2)
    with Cluster(build, peers=3) as c:
        start_keyed(c, old)
        step = 0
        for lines in ([old, new], [new, old], [new]):
            for d in [*c.peers, *c.nodes]:
                write_keys(d.keys, *lines)
                wait_until(f"{d.name} reads its keys", lambda d=d: d.log.read_text().count("were read again") >= 1, 10)
                if lines == [new] and d is not c.peers[-1]:
                    d.log.write_text("")
                    continue
                d.log.write_text("")
                step += 1
                save(c, "rotate", step)
        c.peers[0].kill()
        c.peers[0].start()  # and a connection made anew, with the new key only
        c.wait_peers_up()
        save(c, "rotate", step + 1)
        listed = c.query("list", "--job", "rotate")
        assert sum(k["state"] == "committed" for k in listed["checkpoints"]) == step + 1, listed


def strangers_get_nothing(build):
    with Cluster(build, peers=3) as c:
        start_keyed(c, key(1))
        wrong, keyless = c.peers[1], c.peers[2]
        wrong.kill()
        write_keys(wrong.keys, key(1))  # another key under the same number
        wrong.start()
        keyless.kill()
        keyless.options["fabric"].pop("key_file")
        keyless.write_config()
        keyless.start()

        def errors():
            status = c.query("status")
            return {p["peer"]: (p["state"], p["last_error"]) for p in status["peers"]} if status else {}

        wait_until("both strangers are named",
                   lambda: "could not prove" in errors().get("p2", ("", ""))[1] and "no key" in errors().get("p3", ("", ""))[1], 20)
        assert errors()["p1"][0] == "up", errors()
        save(c, "alone", 1)
        assert not wrong.stream_files() and not keyless.stream_files(), "a stranger got fragments"


def bad_starts_are_refused(build):
    cairnd = pathlib.Path(build).resolve() / "daemon" / "cairnd"
    with Cluster(build, peers=1) as c:
        p = c.peers[0]

        def refused(*words):
            p.write_config()
            r = subprocess.run([cairnd, "--config", p.config], capture_output=True, text=True, timeout=30, check=False)
            assert r.returncode == 1 and all(w in r.stderr for w in words), r

        p.options.setdefault("fabric", {})["bind"] = "0.0.0.0"
        refused("--make-key", "key_file", "0.0.0.0")
        p.options["fabric"]["bind"] = "127.0.0.1"
        path = p.dir / "keys"
        p.options["fabric"]["key_file"] = str(path)
        refused(str(path))
        subprocess.run([cairnd, "--make-key", path], check=True, timeout=30)
        assert path.stat().st_mode & 0o777 == 0o600
        assert subprocess.run([cairnd, "--make-key", path], capture_output=True, timeout=30, check=False).returncode == 1
        path.chmod(0o640)
        refused(str(path), "chmod 600")
        path.chmod(0o600)
        c.node.options.setdefault("fabric", {})["key_file"] = str(path)
        c.node.write_config()
        p.write_config()
        c.start_all()
        save(c, "made", 1)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--build", required=True)
    a = p.parse_args()
    cases = [keys_rotate_under_saves, strangers_get_nothing, bad_starts_are_refused]
    for case in cases:
        case(a.build)
        print(f"ok {case.__name__}", flush=True)
    print(f"{len(cases)} passed, 0 failed")


if __name__ == "__main__":
    main()
