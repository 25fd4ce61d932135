#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Several sessions of one node restore the same checkpoint: its bytes come from the peers about once, and each gets every one of them.

Each function is one day and says what it catches."""
import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "lib"))
from cluster import Cluster, wait_until  # noqa: E402

WINDOW_MIB = 8
SIZE = ["--bytes", str(48 << 20), "--world", "2"]


def client(c, *args):
    return c.spawn([c.build / "tests" / "cluster" / "cluster-client", *args], stdin=-1)


def save(c, steps):
    ranks = [client(c, "save", *SIZE, "--count", steps, "--rank", r) for r in (0, 1)]
    for r in ranks:
        out, err = r.communicate(timeout=90)
        assert r.returncode == 0 and f"committed {steps}" in out, out + err
    c.wait_complete()


def cold(c):
    """A daemon that has nothing in memory, and has counted nothing."""
    c.node.kill()
    c.node.start()
    c.wait_peers_up()


def restored(c):
    status = c.query("status")
    return dict(status["restore"], hedged=status["transfer"]["reads_hedged"])


def read_about_once(r, once, given_up=0):
    """Fragments that were asked for because others were late come on top, on a busy machine; and what was given up on its way."""
    assert r["decoded_bytes"] <= 1.1 * once["decoded_bytes"], (r, once)
    assert r["read_bytes"] <= 1.1 * once["read_bytes"] + r["hedged"] * (4096 + (1 << 20)) + given_up, (r, once)


def readers(c, n, *args):
    """n of them that have the checkpoint open and wait to begin."""
    all_of_them = [client(c, "verify", *SIZE, "--waits", *args) for _ in range(n)]
    for r in all_of_them:
        assert r.stdout.readline().startswith("ready"), r.communicate(timeout=10)
    return all_of_them


def go(reader, times=2):
    reader.stdin.write("g" * times)
    reader.stdin.flush()


def ends_well(reader):
    out, err = reader.communicate(timeout=60)
    assert reader.returncode == 0 and "verified" in out, out + err


def alone(c):
    """One that is alone: what the others are measured by (catches: bytes that are not counted, or read twice even then)."""
    cold(c)
    assert "verified" in c.client("verify", *SIZE)[1]
    r = restored(c)
    assert r["shared_chunks"] == 0 and r["fanout_bytes"] == 0 and r["open"] == 0, r
    assert r["delivered_bytes"] == r["decoded_bytes"] > 90 << 20, r
    return r


def four(c, once):
    """Four at the same time (catches: a gather for each reader, a chunk that only one of them gets, another one's bytes)."""
    cold(c)
    all_four = readers(c, 4)
    for r in all_four:
        go(r)
    for r in all_four:
        ends_well(r)
    r = restored(c)
    read_about_once(r, once)
    assert r["delivered_bytes"] == 4 * once["delivered_bytes"], (r, once)
    assert r["shared_bytes"] >= 2.7 * once["delivered_bytes"], (r, once)
    wait_until("the memory to be given back", lambda: restored(c)["fanout_bytes"] == 0)


def apart(c, once):
    """One begins when another has all of it already (catches: a chunk that is dropped once its readers have it)."""
    cold(c)
    first, second = readers(c, 2)
    go(first, 1)  # rank 0's
    assert first.stdout.readline().startswith("ready")
    before = restored(c)
    assert before["open"] == 2 and before["shared_chunks"] == 0, before
    go(second, 1)
    assert second.stdout.readline().startswith("ready")
    after = restored(c)
    assert after["read_bytes"] == before["read_bytes"] and after["shared_chunks"] > 0, (before, after)
    for r in (first, second):
        go(r, 1)
        ends_well(r)
    read_about_once(restored(c), once)


def one_dies(c, once):
    """One is killed in mid-restore (catches: a gather that ends with whoever began it, memory that stays with the dead)."""
    cold(c)
    victim, = readers(c, 1, "--stops")
    others = readers(c, 3)
    go(victim, 1)
    assert victim.stdout.readline().startswith("copying")
    for r in others:
        go(r)
    victim.kill()
    victim.wait()
    for r in others:
        ends_well(r)
    read_about_once(restored(c), once, WINDOW_MIB << 20)  # the dead one's reads that nobody else had asked for yet
    wait_until("the memory to be given back", lambda: (s := restored(c))["fanout_bytes"] == 0 and s["open"] == 0)


def little_memory(c):
    """Memory for two chunks at a time: whoever finds none waits for it (catches: a reader that is forgotten, a bound that is none)."""
    c.node.options["node"]["fanout_mib"] = 8
    c.node.write_config()
    cold(c)
    all_four = readers(c, 4)
    for r in all_four:
        go(r)
    most = 0
    while any(r.poll() is None for r in all_four):
        most = max(most, restored(c)["fanout_bytes"])
    for r in all_four:
        ends_well(r)
    assert most <= 8 << 20 and restored(c)["fanout_limit_bytes"] == 8 << 20, most


def no_memory(c, once):
    """Switched off: each reads for itself, as if it were alone."""
    c.node.options["node"]["fanout_mib"] = 0
    c.node.write_config()
    cold(c)
    both = readers(c, 2)
    for r in both:
        go(r)
    for r in both:
        ends_well(r)
    r = restored(c)
    assert r["shared_chunks"] == 0 and r["read_bytes"] >= 1.9 * once["read_bytes"], (r, once)


def damaged_for_all(c):
    """Too few fragments: all who wait hear who is to blame, before their deadline (catches: a failure that only one is told)."""
    c.node.options["node"]["fanout_mib"] = 256
    c.node.write_config()
    cold(c)
    all_three = readers(c, 3, "--timeout", 20000)
    for p in c.peers[1:]:
        p.kill()
    for r in all_three:
        go(r)
    for r in all_three:
        out, err = r.communicate(timeout=40)
        assert r.returncode == 1 and "error restore" in out, out + err
        assert "p2" in out or "p3" in out, out
    wait_until("the reads to end", lambda: restored(c)["fanout_bytes"] == 0)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    with Cluster(parser.parse_args().build, peers=3, node__window_mib=WINDOW_MIB) as c:
        c.start_all()
        save(c, 2)
        once = alone(c)
        days = [four, apart, one_dies, no_memory]
        for day in days:
            day(c, once)
        for day in [little_memory, damaged_for_all]:
            day(c)
        assert c.node.stop() == 0, c.node.tail()
    print(f"{len(days) + 3} passed, 0 failed")


main()
