#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Daemons on hosts of their own (network namespaces): saves while a peer's cable is pulled, cut in one direction, slow, its process stopped,
its disk full or its files damaged; the placement over failure domains; and the hosts themselves go with the test, even after SIGKILL.

Catches: a wait on a silent peer without a deadline, a connection that is never tried again, a commit that counts a fragment nobody has, two
fragments of a stripe in one domain, a damaged fragment that is believed, an error of a full disk that fails the save."""
import argparse
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "lib"))
import netns  # noqa: E402
from cluster import SKIP, wait_until  # noqa: E402
from trainer import Book, Trainer  # noqa: E402
from wide import Wide  # noqa: E402

SIZE = 3 << 20
WORLD = 2


class Job:
    """One start of a job that saves while something happens to a peer."""

    def __init__(self, c, name, count=1000000):
        self.c, self.name, self.book = c, name, Book()
        self.trainer = Trainer(c, 1, self.book, size=SIZE, job=name, count=count, prefix=name)

    def progress(self, commits=2, seconds=30):
        want = len(self.book.told) + commits
        wait_until(f"{self.name}: {commits} commits", lambda: len(self.book.told) >= want or self.trainer.ended(), seconds)
        assert not self.trainer.ended(), [r.last_line for r in self.trainer.ended()]

    def check(self):
        """Ends the ranks; whatever they were told is listed, and whatever is listed is right to the last bit."""
        self.trainer.join()
        listed = {k["step"] for k in self.c.query("list", "--job", self.name)["checkpoints"] if k["state"] == "committed"}
        lost = sorted(set(self.book.told) - listed)
        assert not lost, f"committed and lost: {lost}"
        for step in sorted(listed):
            out = self.c.client("verify", "--job", self.name, "--bytes", SIZE, "--world", WORLD, "--seed", 1, "--step", step)[1]
            assert f"verified {step}" in out, out


def peer_state(c, peer):
    return [p for p in c.query("status")["peers"] if p["peer"] == peer.name][0]


def wait_avoided(c, peer):
    """The node has seen that something is wrong, and says what."""
    seen = wait_until(f"{peer.name} to be avoided", lambda: (s := peer_state(c, peer))["state"] != "up" and s, 20)
    assert seen["last_error"], seen


def through(c, name, hurt, heal, avoided=True):
    """Saves before, during and after; `avoided`: the fault silences the peer, so it must be named, and taken back afterwards."""
    job = Job(c, name)
    job.progress()
    hurt()
    try:
        if avoided:
            wait_avoided(c, c.peers[2])
        job.progress()
        newest = max(job.book.told)
        out = c.client("verify", "--job", name, "--bytes", SIZE, "--world", WORLD, "--seed", 1, "--step", newest)[1]
        assert f"verified {newest}" in out, out
    finally:
        heal()
    c.wait_peers_up(len(c.peers))
    job.progress()
    job.check()


def unplugged(c):
    host = c.peers[2].host
    through(c, "unplugged", host.unplug, host.plug)


def cut_one_way(c):
    """The node's packets arrive, the peer's answers do not."""
    host = c.peers[2].host
    through(c, "one-way", lambda: host.cut(c.node.host), host.mend)


def stopped(c):
    through(c, "stopped", c.peers[2].freeze, c.peers[2].thaw)


def slow(c):
    """A slow peer may be used or avoided; nothing else waits for it longer than its deadline."""
    host = c.peers[2].host
    if "tbf" in c.net.missing:
        print("skipped slow: the kernel has no tbf")
        return
    through(c, "slow", lambda: host.shape(2), host.unshape, avoided=False)


def full(c):
    """A full disk refuses with the reason, the others take its share, and its room is used again."""
    peer = c.peers[2]

    def fill():
        peer.disk.fill()
        wait_until("the node to hear of it", lambda: re.search("free|space", peer_state(c, peer)["last_error"] or ""), 20)

    through(c, "full", fill, peer.disk.clear, avoided=False)


def full_in_mid_save(c):
    """A disk with room for some of four ranks: what the peer took before it was full counts all the same (catches: a refused stream that
    is never synced, so that the save hangs until its deadline)."""
    disk, took = c.peers[2].disk, 0
    for room in range(8):  # from too little for one rank to enough for several
        job, book = f"mid{room}", Book()
        disk.fill(leave_bytes=(2 << 20) + (room << 18))
        trainer = Trainer(c, 1, book, per_node=4, size=SIZE, job=job, prefix=job, count=1, timeout_ms=10000)
        trainer.wait()
        disk.clear()
        assert sorted(book.told) == [1], book.failures
        out = c.client("verify", "--job", job, "--bytes", SIZE, "--world", 4, "--seed", 1)[1]
        assert "verified 1" in out, out
        took += len(c.stream_files(c.peers[2], job))
    assert 0 < took < 8, f"the disk was full from the beginning, or never, {took}"


def damaged(c):
    """The files of one peer are hurt, many bits in each: some may lie where nothing is stored."""
    job = Job(c, "damaged", count=3)
    job.trainer.wait()
    c.node.kill()  # its arena would hide the damage
    c.node.start()
    c.wait_peers_up()
    hurt = max(c.peers, key=lambda p: sum(f.stat().st_size for f in c.stream_files(p, "damaged")))  # one may just be avoided
    flips = c.flip_bits(hurt, random.Random(1), 64, job="damaged")
    reports = [c.query("check", "--job", "damaged", "--step", step) for step in job.book.told]
    assert sum(r["corrupt"] for r in reports) > 0 and all(r["repairable"] for r in reports), reports
    job.check()
    c.unflip(flips)


def node_unplugged(c):
    """The node is alone: saves fail with the reason, ranks live; afterwards they are committed again."""
    job = Job(c, "alone")
    job.progress()
    c.node.host.unplug()
    before = len(job.book.failures)
    wait_until("a save to fail", lambda: len(job.book.failures) > before, 60)
    c.node.host.plug()
    c.wait_peers_up(len(c.peers))
    job.progress(seconds=60)
    job.check()


def domains(c):
    """Nine peers in three domains, 4+2: a whole domain is lost, three peers, and nothing else (catches: placement blind to domains)."""
    job = Job(c, "domains", count=4)
    job.trainer.wait()
    assert sorted(job.book.told) == [1, 2, 3, 4], job.book.told
    c.node.kill()  # its arena would answer
    lost = [p for p in c.peers if p.options["peer"]["domain"] == "r2"]
    assert len(lost) == 3 and all(c.stream_files(p, "domains") for p in lost)
    for p in lost:
        p.host.unplug()
    c.node.start()
    job.check()


VICTIM = """
import subprocess, sys, time
sys.path.insert(0, sys.argv[1])
import netns
from cluster import _die_with_parent
netns.enter()
net = netns.Net()
ps = [subprocess.Popen([*net.host(n).prefix, "sleep", "1000"], preexec_fn=_die_with_parent) for n in "ab"]
time.sleep(0.2)
print(*[p.pid for p in ps], flush=True)
time.sleep(1000)
"""


def gone_after_sigkill():
    """A test that is killed leaves no process; its namespaces have no name, so they end with the last process."""
    lib = pathlib.Path(__file__).resolve().parent.parent / "lib"
    names = lambda: sorted(os.listdir("/run/netns")) if os.path.isdir("/run/netns") else []  # noqa: E731
    before = names()
    p = subprocess.Popen([sys.executable, "-c", VICTIM, str(lib)], stdout=subprocess.PIPE, text=True)
    pids = [int(x) for x in p.stdout.readline().split()]
    assert len(pids) == 2
    p.send_signal(signal.SIGKILL)
    p.wait(10)
    p.stdout.close()
    wait_until("the hosts' processes to end", lambda: not [pid for pid in pids if running(pid)], 10)
    assert names() == before


def running(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


DAYS = [unplugged, cut_one_way, stopped, slow, full, full_in_mid_save, damaged, node_unplugged]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    parser.add_argument("--only", help="one day's name")
    a = parser.parse_args()
    options = {"node__fragment_late_ms": 500, "node__connect_ms": 500, "node__backoff_ms": 100, "node__sync_late_ms": 2000}
    try:
        netns.enter()
        c = Wide(a.build, peers=6, disk_mib=1024, **options)
    except (netns.NotPermitted, netns.Missing) as e:
        print(f"skipped: {e}")
        sys.exit(SKIP)
    wanted = lambda day: a.only in (None, day.__name__)  # noqa: E731
    with c:
        c.start_all()
        for day in DAYS:
            if wanted(day):
                begin = time.monotonic()
                day(c)
                print(f"ok {day.__name__} {time.monotonic() - begin:.1f} s", flush=True)
        assert c.node.alive() and all(p.alive() for p in c.peers)
    if wanted(domains):
        with Wide(a.build, peers=9, domains=["r1", "r2", "r3"] * 3, net=c.net, **options) as d:
            d.start_all()
            domains(d)
            print("ok domains")
    if wanted(gone_after_sigkill):
        gone_after_sigkill()
        print("ok gone_after_sigkill")
    print(f"{len(DAYS) + 2 if not a.only else 1} passed, 0 failed")


main()
