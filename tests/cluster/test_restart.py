#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A daemon may die and come back: what was filled is saved after all, by trainers that hand their arena back or, when they are gone
too, from the service manager's descriptor store (a test double of it, see Notify in tests/lib/cluster.py).

Each function is one bad day and says what it catches."""
import argparse
import ctypes
import fcntl
import mmap
import os
import pathlib
import signal
import socket
import struct
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "lib"))
from cluster import Cluster, wait_until  # noqa: E402

SIZE = ["--bytes", str(12 << 20)]
HEADER = struct.Struct("=IHHII")
MAGIC = 0x4C4E5243
F_SEAL_FUTURE_WRITE = 0x10
LEDGER_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | F_SEAL_FUTURE_WRITE


def trainer(c, *args, **kwargs):
    return c.spawn([c.build / "tests/cluster/cluster-client", "save", *SIZE, *args], **kwargs)


def read_until(t, start):
    """The trainer's output up to a line that starts so."""
    lines = []
    while True:
        line = t.stdout.readline()
        assert line, f"the trainer ended before {start!r}: {lines} {t.stderr.read()}"
        lines.append(line.strip())
        if line.startswith(start):
            return lines


def kill_peers(c):
    """What is filled now cannot become durable. Not SIGSTOP: a stopped peer may hold the lock of the metadata's database."""
    for p in c.peers:
        p.kill()


def start_peers(c):
    for p in c.peers:
        p.start(wait=False)
    for p in c.peers:
        p.wait_ready()


def state_of(c, job, step):
    for k in c.query("list", "--job", job)["checkpoints"]:
        if k["step"] == step:
            return k["state"]
    return "absent"


def verified(c, job, step, *args):
    out = c.client("verify", *SIZE, "--job", job, "--step", step, *args)[1]
    assert f"verified {step}" in out, out


def filled_then_killed(c):
    """SIGKILL after FILLED, before COMMITTED (catches: a snapshot that dies with its daemon, a handle that does)."""
    kill_peers(c)
    t = trainer(c, "--job", "filled", "--count", 2, "--timeout", 60000)
    read_until(t, "sealed 1")
    c.node.kill()
    start_peers(c)
    c.node.start()
    out, err = t.communicate(timeout=90)
    assert "committed 1" in out and "committed 2" in out and "failed" not in out, out + err + c.node.tail()
    verified(c, "filled", 1)
    verified(c, "filled", 2)
    assert "handed its arena" in c.node.tail(1000)


def ordered_restart(c):
    """An upgrade: SIGTERM and a new start (catches: a stop that aborts what it does not finish)."""
    kill_peers(c)
    t = trainer(c, "--job", "upgrade", "--timeout", 60000)
    read_until(t, "sealed 1")
    c.node.kill(signal.SIGTERM)
    start_peers(c)
    c.node.start()
    out, err = t.communicate(timeout=90)
    assert "committed 1" in out and "failed" not in out, out + err + c.node.tail()
    verified(c, "upgrade", 1)


def killed_twice(c):
    """The second daemon dies, too (catches: a ledger that only its first writer can write, attempts that are used twice)."""
    kill_peers(c)
    t = trainer(c, "--job", "twice", "--timeout", 60000)
    read_until(t, "sealed 1")
    for _ in range(2):
        c.node.kill()
        mark = len(c.node.tail(100000))
        c.node.start()
        wait_until("the arena to be back", lambda: "job twice rank 0 handed its arena" in c.node.tail(100000)[mark:], 30)
    c.node.kill()
    start_peers(c)
    c.node.start()
    out, err = t.communicate(timeout=90)
    assert "committed 1" in out and "failed" not in out, out + err + c.node.tail()
    verified(c, "twice", 1)


def begun_then_ended(c):
    """The end in the middle of the copy: it goes on and the snapshot is saved (catches: pages that are given to somebody else, a
    stop that drops what is begun)."""
    for job, sig in (("begun", signal.SIGKILL), ("begun-term", signal.SIGTERM)):
        t = trainer(c, "--job", job, "--stops", "--count", 2, "--timeout", 60000, stdin=-1)
        read_until(t, "copying 1")
        c.node.kill(sig)
        c.node.start()
        c.wait_peers_up()
        t.stdin.write("gg")
        out, err = t.communicate(timeout=90)
        assert "committed 1" in out and "committed 2" in out, out + err + c.node.tail()
        verified(c, job, 1)
        verified(c, job, 2)


def trainer_dead_too(c):
    """Both are killed: the store has the arena, and what was filled is saved by the next daemon alone."""
    kill_peers(c)
    t = trainer(c, "--job", "orphan", "--timeout", 60000)
    read_until(t, "sealed 1")
    c.node.kill()
    t.kill()
    t.wait()
    start_peers(c)
    assert any(name.startswith("arena-") for name in c.node.store) and any(name.startswith("ledger-") for name in c.node.store)
    c.node.start()
    wait_until("the orphan's step to be committed", lambda: state_of(c, "orphan", 1) == "committed", 60)
    verified(c, "orphan", 1)
    # The rank's next process gets the arena; its predecessor's snapshot is in it, and two of its own find room.
    out = c.client("save", *SIZE, "--job", "orphan", "--start-id", "next", "--count", 2)[1]
    assert "committed 2" in out and "committed 3" in out, out


def kept_over_a_restart(c):
    """A committed snapshot stays in its arena over a restart and restores (catches: kept pages that a new daemon takes for free)."""
    t = trainer(c, "--job", "kept", "--stops", "--count", 2, stdin=-1)
    read_until(t, "copying 1")
    t.stdin.write("g")
    t.stdin.flush()
    read_until(t, "copying 2")  # of step 2, which never ends
    c.node.kill()
    t.kill()
    t.wait()
    c.node.start()
    c.wait_peers_up()
    assert "the arena of job kept rank 0" in c.node.tail(1000)
    verified(c, "kept", 1)


def one_of_two_comes_back(c):
    """Rank 1 is gone and nothing keeps its arena: the step is aborted, and rank 0 hears who was missing."""
    store, c.node.store = c.node.store, None
    c.node.kill()
    c.node.start()
    c.wait_peers_up()
    kill_peers(c)
    both = [trainer(c, "--job", "pair", "--world", 2, "--rank", r, "--timeout", 60000) for r in (0, 1)]
    for t in both:
        read_until(t, "sealed 1")
    c.node.kill()
    both[1].kill()
    both[1].wait()
    start_peers(c)
    c.node.start()
    out, err = both[0].communicate(timeout=90)
    assert "failed 1 aborted" in out and "rank 1" in out and "no node has its snapshot" in out, out + err + c.node.tail()
    assert state_of(c, "pair", 1) == "aborted"
    c.node.store = store if store is not None else {}


def both_of_two_come_back(c):
    kill_peers(c)
    both = [trainer(c, "--job", "two", "--world", 2, "--rank", r, "--timeout", 60000) for r in (0, 1)]
    for t in both:
        read_until(t, "sealed 1")
    c.node.kill()
    start_peers(c)
    c.node.start()
    for t in both:
        out, err = t.communicate(timeout=90)
        assert "committed 1" in out, out + err + c.node.tail()
    verified(c, "two", 1, "--world", 2)


def dead_daemon(c):
    """Nobody comes back: the wait ends by its deadline and names the socket; when somebody does, the same handle goes on."""
    kill_peers(c)
    t = trainer(c, "--job", "away", "--timeout", 1500, "--rounds", 60)
    read_until(t, "sealed 1")
    c.node.kill()
    lines = read_until(t, "waiting 1 unavailable")
    assert c.node.socket in lines[-1], lines
    start_peers(c)
    c.node.start()
    out, err = t.communicate(timeout=120)
    assert "committed 1" in out, out + err + c.node.tail()


def stopped_daemon(c):
    """SIGSTOP: every call of the client ends by its own deadline (catches: a wait inside libcairn that has none)."""
    t = trainer(c, "--job", "frozen", "--stops", "--timeout", 1000, "--count", 2, stdin=-1)
    read_until(t, "copying 1")
    c.node.freeze()
    try:
        t.stdin.write("gg")
        t.stdin.flush()
        out, err = t.communicate(timeout=40)  # seal, wait, and the next step's seal: a second or so each
        assert "failed 1" in out and "failed 2" in out, out + err
        code, out, _ = c.client("status", "--timeout", 1000, check=False, seconds=40)
        assert code == 1 and c.node.socket in out, out
    finally:
        c.node.thaw()
    assert "committed" in c.client("save", *SIZE, "--job", "frozen", "--start-id", "again", "--take-over")[1]


def staged(c):
    """Room and copy first, the rest written where it lies, the daemon gone before the seal or behind it; and with another call of the
    process that has come back to the next daemon before the seal (catches: a word that nobody looks at any more)."""
    for job, asks in (("staged", ""), ("staged-asks", "l")):
        t = trainer(c, "--job", job, "--staged", "--count", 3, "--seed", 2, "--timeout", 60000, stdin=-1)
        t.stdin.write("g")
        t.stdin.flush()
        read_until(t, "committed 1")
        read_until(t, "staged 2")
        c.node.kill()
        c.node.start()
        c.wait_peers_up()
        if asks:
            t.stdin.write(asks)
            t.stdin.flush()
            read_until(t, "asked 2")
        t.stdin.write("g")
        t.stdin.flush()
        read_until(t, "committed 2")
        read_until(t, "staged 3")
        kill_peers(c)
        t.stdin.write("g")
        t.stdin.flush()
        read_until(t, "sealed 3")
        c.node.kill()
        start_peers(c)
        c.node.start()
        out, err = t.communicate(timeout=90)
        assert "committed 3" in out, out + err + c.node.tail()
        for step in (1, 2, 3):
            verified(c, job, step, "--seed", 2)


def staged_and_left(c):
    """The trainer is killed between the two, or gives the save up: nothing is committed, and the room is there again."""
    t = trainer(c, "--job", "left", "--staged", "--timeout", 60000, stdin=-1)
    read_until(t, "staged 1")
    t.kill()
    t.wait()
    wait_until("the step to be aborted", lambda: state_of(c, "left", 1) in ("aborted", "absent"), 30)
    out = c.client("save", *SIZE, "--job", "left", "--start-id", "next", "--count", 4, "--first", 2)[1]
    assert "committed 5" in out and "failed" not in out, out
    verified(c, "left", 5)


# ---- what a client may hand back ----------------------------------------------------------------


class Raw:
    """A client that speaks the local protocol by hand."""

    def __init__(self, c):
        self.s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.s.settimeout(20)
        self.s.connect(c.node.socket)

    def call(self, kind, body, fds=()):
        message = HEADER.pack(MAGIC, 1, kind, HEADER.size + len(body), 1) + body
        socket.send_fds(self.s, [message], list(fds))
        answer, got, _, _ = socket.recv_fds(self.s, 65536, 2)
        return HEADER.unpack(answer[:HEADER.size])[2], answer[HEADER.size:], got

    def open(self, job):
        body = struct.pack("129s129s2xIIII4xQ64x", job.encode(), b"start", 0, 0, 1, 10000, 8 << 20)
        kind, body, fds = self.call(1, body)
        assert kind == 66 and len(fds) == 2, body
        return struct.unpack_from("QQQ", body)[2], fds

    def hand_back(self, job, arena_id, fds, rank=0):
        body = struct.pack("129s129s2xIIQ32x", job.encode(), b"start", rank, 0, arena_id)
        kind, body, _ = self.call(13, body, fds)
        return "" if kind == 65 else body[8:].split(b"\0")[0].decode()

    def close(self):
        self.s.close()


def copy_of(fd, change=None, seals=LEDGER_SEALS):
    """A memfd with the same bytes, but for one."""
    size = os.fstat(fd).st_size
    copy = os.memfd_create("copy", os.MFD_ALLOW_SEALING)
    os.ftruncate(copy, size)
    with mmap.mmap(copy, size) as m:
        data = os.pread(fd, min(size, 1 << 20), 0)
        m[:len(data)] = data
        if change is not None:
            m[change] ^= 1
    fcntl.fcntl(copy, fcntl.F_ADD_SEALS, seals)
    return copy


def refuses_what_does_not_match(c):
    """Tampered ledgers and foreign memory (catches: an arena that is believed unseen). Each refusal leaves a usable connection."""
    first, other = Raw(c), Raw(c)
    arena_id, (arena, ledger) = first.open("hostile")
    other_id, (other_arena, other_ledger) = other.open("hostile-other")
    first.close()
    c.node.kill()
    c.node.store.clear()
    c.node.start()
    r, w = os.pipe()
    plain = os.memfd_create("plain", os.MFD_ALLOW_SEALING)
    foreign = copy_of(arena, seals=fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    cases = [
        ([arena, copy_of(ledger, 60)], arena_id, 0, "checksum"),
        ([arena, copy_of(ledger, 8)], arena_id, 0, "version"),
        ([arena, copy_of(ledger, 0)], arena_id, 0, "no ledger"),
        ([arena, copy_of(ledger, seals=fcntl.F_SEAL_SHRINK)], arena_id, 0, "seals"),
        ([arena, plain], arena_id, 0, "seals"),
        ([arena, r], arena_id, 0, "no memfd"),
        ([r, ledger], arena_id, 0, "no memfd"),
        ([foreign, ledger], arena_id, 0, "another memory file"),
        ([other_arena, ledger], arena_id, 0, "another memory file"),
        ([arena, other_ledger], arena_id, 0, "another memory file"),
        ([other_arena, other_ledger], other_id, 0, "hostile-other"),
        ([arena, ledger], arena_id + 1, 0, "not"),
        ([arena, ledger], arena_id, 1, "rank 0"),
    ]
    for fds, number, rank, says in cases:
        raw = Raw(c)
        why = raw.hand_back("hostile", number, fds, rank)
        assert says in why, (says, why)
        got_id, got = raw.open("hostile")
        assert got_id != arena_id
        for fd in got:
            os.close(fd)
        raw.close()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    failed = ctypes.c_void_p(-1).value
    assert libc.mmap(None, 4096, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, ledger, 0) == failed, "the ledger can be written"
    raw = Raw(c)
    assert raw.hand_back("hostile", arena_id, [arena, ledger]) == ""
    got_id, _ = raw.open("hostile")
    assert got_id == arena_id, "what is right is taken back"
    raw.close()
    assert c.node.alive()


DAYS = [filled_then_killed, killed_twice, ordered_restart, begun_then_ended, trainer_dead_too, kept_over_a_restart, both_of_two_come_back,
        one_of_two_comes_back, staged, staged_and_left, dead_daemon, stopped_daemon, refuses_what_does_not_match]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    parser.add_argument("--only", help="one day's name")
    a = parser.parse_args()
    with Cluster(a.build, peers=3, node__sync_late_ms=30000, node__fragment_late_ms=5000) as c:
        c.node.store = {}
        c.start_all()
        for day in DAYS:
            if a.only in (None, day.__name__):
                begin = time.monotonic()
                day(c)
                print(f"ok {day.__name__} {time.monotonic() - begin:.1f} s", flush=True)
        assert c.node.alive() and all(p.alive() for p in c.peers)
    print(f"{len(DAYS) if not a.only else 1} passed, 0 failed")


main()
