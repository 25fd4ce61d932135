#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Restores from a process's own arena, and what happens when that is damaged or the daemon dies in the middle of it.

Each function is one day and says what it catches."""
import argparse
import pathlib
import re
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "lib"))
from cluster import Cluster  # noqa: E402

MIB = 1 << 20
CONTROL = 2 * MIB  # of an arena, before its first page
ONE = ["--bytes", str(24 * MIB)]


def client(c, *args):
    return c.spawn([c.build / "tests" / "cluster" / "cluster-client", *args], stdin=-1)


def saved(c, job, *args):
    """A rank that has saved step 1 and waits to restore it."""
    rank = client(c, "hot", *ONE, "--job", job, "--first", 1, *args)
    lines = []
    while not lines or not lines[-1].startswith("committed 1"):
        lines.append(rank.stdout.readline())
        assert lines[-1], (lines, rank.stderr.read())
    c.wait_complete()
    return rank


def go(rank):
    rank.stdin.write("g")
    rank.stdin.flush()


def restored(c):
    return c.query("status")["restore"]


def ends(rank, seconds=60):
    begin = time.monotonic()
    out, err = rank.communicate(timeout=seconds)
    return rank.returncode, out + err, time.monotonic() - begin


def arena_pages(rank):
    """Where the arena's pages with something in them are mapped in the rank."""
    maps = pathlib.Path(f"/proc/{rank.pid}/maps").read_text()
    found = [[int(x, 16) for x in m.groups()] for m in re.finditer(r"^(\w+)-(\w+) \S+ (\w+) .*memfd:cairn-arena", maps, re.M)]
    assert found, maps
    with open(f"/proc/{rank.pid}/mem", "rb", buffering=0) as memory:
        for begin, end, offset in found:
            for at in range(begin + max(0, CONTROL - offset), end, MIB):
                memory.seek(at)
                if any(memory.read(4096)):
                    yield at


def damage(rank, pages, at=12345):
    with open(f"/proc/{rank.pid}/mem", "r+b", buffering=0) as memory:
        for page in pages:
            memory.seek(page + at)
            byte = memory.read(1)[0]
            memory.seek(page + at)
            memory.write(bytes([byte ^ 0x10]))


def from_the_arena(c):
    """Nothing is wrong: nothing is read from peers, nothing goes through the daemon (catches: a hot path that is never taken)."""
    before = restored(c)
    rank = saved(c, "well")
    go(rank)
    code, out, _ = ends(rank)
    assert code == 0 and "verified 1" in out, out
    after = restored(c)
    assert after["in_place_bytes"] - before["in_place_bytes"] > 20 * MIB, (before, after)
    assert after["read_bytes"] == before["read_bytes"] and after["hot_bytes"] == before["hot_bytes"], (before, after)


def damaged(c, name, which):
    """Damaged pages: their chunks come from the peers, and only theirs (catches: a page that is believed without its checksum, by the
    process itself or by the daemon, and a damaged page that makes the whole restore cold)."""
    before = restored(c)
    rank = saved(c, name)
    pages = list(arena_pages(rank))
    assert len(pages) >= 20, pages
    damage(rank, which(pages))
    go(rank)
    code, out, _ = ends(rank)
    assert code == 0 and "verified 1" in out, out
    after = restored(c)
    return after["delivered_bytes"] - before["delivered_bytes"], after["decoded_bytes"] - before["decoded_bytes"], after["hot_bytes"] - before["hot_bytes"]


def one_page(c):
    delivered, decoded, hot = damaged(c, "one", lambda pages: pages[7:8])
    assert 0 < decoded <= 4 * MIB and delivered == decoded and hot == 0, (delivered, decoded, hot)


def every_page(c):
    delivered, decoded, hot = damaged(c, "every", lambda pages: pages)
    assert decoded > 20 * MIB and delivered == decoded and hot == 0, (delivered, decoded, hot)


def seen_by_the_daemon_too(c):
    """Another process restores from the rank's damaged arena (catches: the daemon's copy that is not checked)."""
    rank = saved(c, "other")
    damage(rank, list(arena_pages(rank))[3:5])
    before = restored(c)
    out = c.client("verify", *ONE, "--job", "other")[1]
    assert "verified 1" in out, out
    after = restored(c)
    decoded, hot = after["decoded_bytes"] - before["decoded_bytes"], after["hot_bytes"] - before["hot_bytes"]
    assert 0 < decoded <= 8 * MIB and hot > 10 * MIB, (before, after)
    go(rank)
    code, out, _ = ends(rank)
    assert code == 0 and "verified 1" in out, out


def stopped(c, job):
    """A rank in the middle of its restore: it has begun to write to its first tensor."""
    rank = saved(c, job, "--stops", "--timeout", 4000)
    go(rank)
    line = rank.stdout.readline()
    assert line.startswith("copying"), (line, rank.stderr.read() if not line else "")
    return rank


def daemon_dies(c):
    """Killed in mid-restore, and not started again: an error within the deadline that names the daemon, whatever was copied by then
    (catches: a wait without end, bytes that count although nobody said that they had stayed what they were)."""
    rank = stopped(c, "dies")
    c.node.kill()
    go(rank)
    code, out, took = ends(rank)
    assert code == 1 and "error restore" in out and "verified" not in out, out
    assert "cairnd" in out or c.node.socket in out, out
    assert took < 15, took
    c.node.start()
    c.wait_peers_up()
    assert "verified 1" in c.client("verify", *ONE, "--job", "dies")[1]


def daemon_comes_back(c):
    """Killed and started again in mid-restore: it goes on, or ends with an error that says what to do; never with a wrong byte."""
    rank = stopped(c, "back")
    c.node.kill()
    c.node.start()
    c.wait_peers_up()
    go(rank)
    code, out, took = ends(rank)
    assert ("verified 1" in out) if code == 0 else ("error restore" in out and "cairnd" in out), out
    assert took < 15, took
    assert "verified 1" in c.client("verify", *ONE, "--job", "back")[1]


def daemon_dies_under_a_cold_one(c):
    """The same while chunks come from the peers."""
    reader = client(c, "verify", *ONE, "--job", "well", "--stops", "--timeout", 4000)
    assert reader.stdout.readline().startswith("copying")
    c.node.kill()
    go(reader)
    code, out, took = ends(reader)
    assert code == 1 and "error restore" in out and ("cairnd" in out or c.node.socket in out), out
    assert took < 15, took
    c.node.start()
    c.wait_peers_up()
    assert "verified 1" in c.client("verify", *ONE, "--job", "well")[1]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    with Cluster(parser.parse_args().build, peers=3, node__window_mib=4) as c:  # far from all of a checkpoint at once
        c.start_all()
        days = [from_the_arena, one_page, every_page, seen_by_the_daemon_too, daemon_dies, daemon_comes_back, daemon_dies_under_a_cold_one]
        for day in days:
            day(c)
        assert c.node.stop() == 0, c.node.tail()
    print(f"{len(days)} passed, 0 failed")


main()
