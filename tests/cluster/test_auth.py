#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Daemons prove to each other that they hold the cluster's key before a slot is granted.

Catches: a stranger that gets slots, a node that writes to a peer which does not hold the key, a rotation that interrupts saves or that locks
daemons out half-way, a daemon without a key that listens to the world, a flood of greetings that costs more than the table of them.
"""
import argparse
import json
import os
import pathlib
import secrets
import select
import signal
import sqlite3
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "lib"))
from cluster import Cluster, wait_until  # noqa: E402
from trainer import Book, Rank  # noqa: E402

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


def give_keys(daemon, *lines):
    """In place of the old ones, and it is told so: SIGHUP, else within a second."""
    before = daemon.log.read_text().count("were read again")
    write_keys(daemon.keys, *lines)
    if daemon.name in ("p1", "n1"):
        daemon.process.send_signal(signal.SIGHUP)
    wait_until(f"{daemon.name} reads its keys", lambda: daemon.log.read_text().count("were read again") > before, 10)


def wait_commits(c, book, rank, count=2):
    """Saves go on: more of them are committed."""
    before = len(book.told)
    wait_until(f"{count} more commits", lambda: len(book.told) >= before + count or rank.process.poll() is not None, 60)
    assert rank.process.poll() is None, f"the rank ended: {rank.last_line} {rank.process.stderr.read()}"


def greet_anew(c, peer):
    """A handshake between daemons of which some have other files than the rest."""
    peer.kill()
    peer.start()
    c.wait_peers_up()


def keys_rotate_under_saves(build):
    old, new = key(1), key(2)
    with Cluster(build, peers=3, node__backoff_ms=100) as c:
        start_keyed(c, old)
        book = Book()
        rank = Rank(c.spawn([build / "tests" / "cluster" / "cluster-client", "save", "--job", "rotate", "--start-id", "s1", *BYTES,
                             "--count", "1000000", "--timeout", "20000", "--pause", "20"]), 1, book)
        wait_commits(c, book, rank)
        for lines in ([old, new], [new, old], [new]):
            for d in [*c.peers, *c.nodes]:
                give_keys(d, *lines)
                if d is c.peers[1]:  # half of the daemons have the new file
                    greet_anew(c, d)
                    greet_anew(c, c.peers[2])
                wait_commits(c, book, rank)
        greet_anew(c, c.peers[0])  # with the new key only
        wait_commits(c, book, rank)
        rank.process.kill()
        rank.process.wait(30)
        listed = {k["step"]: k["state"] for k in c.query("list", "--job", "rotate")["checkpoints"]}
        assert all(listed.get(step) == "committed" for step in book.told), (sorted(book.told), listed)
        give_keys(c.peers[0], new, old)
        write_keys(c.peers[0].keys, "nonsense")
        wait_until("p1 complains", lambda: "the keys stay as they were" in c.peers[0].log.read_text(), 10)
        save(c, "after", 1)


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


def a_keyless_node_gets_nothing(build):
    with Cluster(build, peers=2) as c:
        for p in c.peers:
            p.keys = p.dir / "keys"
            write_keys(p.keys, "1 " + "ab" * 32)
            set_key(p, p.keys)
            p.start()
        c.node.start()
        wait_until("the node says who has no key", lambda: sum(
            "node n1 has no key" in p["last_error"] for p in c.query("status")["peers"]) == 2, 20)
        assert all("only daemons of this machine" not in p.log.read_text() for p in c.peers)
        assert "only daemons of this machine can connect" in c.node.log.read_text()
        _, out, _ = c.client("save", "--job", "none", "--count", 1, "--timeout", 2000, *BYTES, check=False)
        assert "\ncommitted " not in out and not any(p.stream_files() for p in c.peers), out
        write_keys(c.node.dir / "keys", "1 " + "ab" * 32)
        set_key(c.node, c.node.dir / "keys")
        c.node.kill()
        c.node.start()
        c.wait_peers_up()
        save(c, "some", 1)


def address_of(c, peer):
    with sqlite3.connect(f"file:{c.dir}/meta.db?mode=ro", uri=True) as db:
        row = db.execute("select value from kv where key = ?", (f"cairn/v1/peers/{peer.name}",)).fetchone()
    return json.loads(row[0])["address"]


def stranger(c, peer, *args):
    return subprocess.run([c.build / "tests" / "cluster" / "cluster-stranger", address_of(c, peer), *map(str, args)], capture_output=True,
                          text=True, timeout=60, check=True).stdout


def processor_s(daemon):
    fields = pathlib.Path(f"/proc/{daemon.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_idle(daemon):
    """In half a second it needs little of the processor: what the flood left behind is gone."""
    before = processor_s(daemon)
    time.sleep(0.5)
    return processor_s(daemon) - before < 0.1


def strangers_cost_little(build):
    with Cluster(build, peers=2) as c:
        start_keyed(c, key(1))
        save(c, "quiet", 1)
        peer = c.peers[0]
        assert "has no key" in stranger(c, peer, "keyless")
        assert "could not prove" in stranger(c, peer, "guess")
        assert "could not prove" in stranger(c, peer, "echo"), "the peer's own proof was good for a node's"
        stranger(c, peer, "flood", 3000)
        save(c, "quiet", 2)  # and n1, in whose name the flood greeted, keeps its slots
        c.wait_peers_up()
        wait_until("the peer to rest after the flood", lambda: is_idle(peer), 60)
        greet_anew(c, c.peers[1])
        save(c, "quiet", 3)


def put_address(c, peer, address):
    """In the peer's record, as whoever may write the metadata can."""
    key_of = f"cairn/v1/peers/{peer.name}"
    with sqlite3.connect(c.dir / "meta.db", timeout=10) as db:
        record = json.loads(db.execute("select value from kv where key = ?", (key_of,)).fetchone()[0])
        db.execute("update kv set value = ? where key = ?", (json.dumps(record | {"address": address}).encode(), key_of))


def a_handshake_cannot_be_passed_on(build):
    """A node finds a stranger at the peer's address, who has the two prove themselves to each other, through it."""
    with Cluster(build, peers=1, node__connect_ms=20000) as c:
        peer = c.peers[0]
        peer.options["meta"]["lease_ms"] = 30000
        start_keyed(c, key(1))
        c.node.kill()
        relay = c.spawn([build / "tests" / "cluster" / "cluster-stranger", address_of(c, peer), "relay"])
        address = relay.stdout.readline().strip()
        peer.freeze()  # it would put its own address again
        put_address(c, peer, address)
        c.node.start()
        assert select.select([relay.stdout], [], [], 20)[0], "nobody greeted the stranger"
        peer.thaw()
        wait_until("the node to refuse the proof that was passed on",
                   lambda: any("could not prove" in p["last_error"] for p in c.query("status")["peers"]), 20)
        relay.kill()
        heard = relay.communicate(timeout=30)[0].split("\n")
        assert "HELLO 0" in heard and "CHALLENGE 0" in heard, heard
        assert "PROOF 0" not in heard and "WELCOME 0" not in heard, f"a stranger got a session: {heard}"


def bad_starts_are_refused(build):
    cairnd = pathlib.Path(build).resolve() / "daemon" / "cairnd"
    with Cluster(build, peers=1) as c:
        p = c.peers[0]

        def refused(*words):
            p.write_config()
            r = subprocess.run([cairnd, "--config", p.config], capture_output=True, text=True, timeout=30, check=False)
            assert r.returncode == 1 and all(w in r.stderr for w in words), r

        p.options.setdefault("fabric", {})["bind"] = "127.example.org"  # begins like loopback, and is none
        refused("--make-key", "key_file", "127.example.org")
        p.options["fabric"]["bind"] = "0.0.0.0"
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
    p.add_argument("--build", required=True, type=pathlib.Path)
    a = p.parse_args()
    cases = [keys_rotate_under_saves, strangers_get_nothing, a_keyless_node_gets_nothing, strangers_cost_little,
             a_handshake_cannot_be_passed_on, bad_starts_are_refused]
    for case in cases:
        case(a.build)
        print(f"ok {case.__name__}", flush=True)
    print(f"{len(cases)} passed, 0 failed")


if __name__ == "__main__":
    main()
