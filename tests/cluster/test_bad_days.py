#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Bad input and bad days: always a clear error that names the culprit, no hang beyond its deadline, no wrong byte, no lost commit.

Each function is one bad day and says what it catches."""
import argparse
import array
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "lib"))
from cluster import Cluster, Daemon, wait_until  # noqa: E402

ONE = ["--bytes", str(6 << 20)]


def saved(c, *args, **kwargs):
    out = c.client("save", *ONE, *args, **kwargs)[1]
    return [int(line.split()[1]) for line in out.splitlines() if line.startswith("committed ")], out


def bad_tables(c):
    """A tensor table that lies is refused before a byte is copied (catches: unchecked offsets and products)."""
    for case, says in [("overlap", "overlap"), ("range", "leave shape"), ("zero", "length 0"), ("overflow", "overflow|too large|most"),
                       ("offset-overflow", "leave shape"), ("no-name", "name"), ("long-name", "name"), ("dtype", "dtype")]:
        out = c.client("bad", "--case", case, "--job", "bad-" + case)[1]
        assert out.startswith("refused invalid") or out.startswith("refused"), (case, out)
        assert re.search(says, out), (case, out)
        assert "accepted" not in out, (case, out)


def bad_names(c):
    """Names become keys and paths (catches: an unchecked job name)."""
    for job in ["", "../x", "a/b", "x" * 200, "."]:
        code, out, _ = c.client("save", *ONE, "--job", job, check=False)
        assert code == 1 and "error open" in out and "committed" not in out, (job, out)


def bad_ranks(c):
    """A rank outside its world, and two processes that claim one rank (catches: two writers of one shard)."""
    code, out, _ = c.client("save", *ONE, "--rank", 2, "--world", 2, check=False)
    assert code == 1 and "rank" in out, out
    args = [c.build / "tests/cluster/cluster-client", "save", *ONE, "--job", "twins", "--count", 1000, "--world", 2, "--start-id", "t"]
    first = c.spawn(args)
    assert "opened" in first.stdout.readline()
    code, out, _ = c.client("save", *ONE, "--job", "twins", "--world", 2, "--start-id", "t", check=False)
    assert code == 1 and "rank 0" in out, out
    code, out, _ = c.client("save", *ONE, "--job", "twins", "--world", 3, "--rank", 1, "--start-id", "t", check=False)
    assert code == 1 and "2 ranks" in out, out
    first.kill()
    first.wait()


def fenced_start(c):
    """A start id that was replaced is refused for good (catches: a presumed-dead run that comes back and saves)."""
    assert saved(c, "--job", "fence", "--start-id", "a")[0] == [1]
    assert saved(c, "--job", "fence", "--start-id", "b")[0] == [2]
    code, out, _ = c.client("save", *ONE, "--job", "fence", "--start-id", "a", check=False)
    assert code == 1 and "fenced" in out, out


def arena_too_small(c):
    """Trying again cannot help, so it is not BUSY."""
    steps, out = saved(c, "--job", "small", "--arena-mib", 2)
    assert steps == [] and "too_large" in out.replace("-", "_") and "arena" in out, out


def tiny_and_empty(c):
    """10,000 tensors of a few bytes, and a checkpoint of none (catches: a limit on messages, a division by zero parts)."""
    assert saved(c, "--job", "tiny", "--tiny", 10000)[0] == [1]
    assert "verified 1" in c.client("verify", *ONE, "--job", "tiny", "--tiny", 10000)[1]
    assert saved(c, "--job", "empty", "--empty")[0] == [1]
    assert "verified 1" in c.client("verify", *ONE, "--job", "empty", "--empty")[1]


def garbage_on_the_socket(c):
    """The sender loses its connection, the daemon goes on (catches: a parser that trusts lengths; descriptors that leak)."""
    header = struct.Struct("=IHHII")
    fds = len(os.listdir(f"/proc/{c.node.process.pid}/fd"))
    good = header.pack(0x4C4E5243, 1, 7, 24, 1) + bytes(8)
    for message in [b"x", os.urandom(100), os.urandom(60000), good[:10], good + b"more", header.pack(0x4C4E5243, 9, 7, 24, 1) + bytes(8),
                    good]:
        s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        s.settimeout(5)
        s.connect(c.node.socket)
        s.send(message)
        while s.recv(65536):
            pass  # an error, perhaps, and then the end
        s.close()
    for _ in range(20):  # closes in the middle
        s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        s.connect(c.node.socket)
        s.close()
    r, w = os.pipe()
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.connect(c.node.socket)
    s.sendmsg([header.pack(0x4C4E5243, 1, 2, 40, 1) + bytes(24)],  # a LAYOUT, before OPEN, with pipes
              [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [r, w]))])
    s.close()
    os.close(r)
    os.close(w)
    wait_until("descriptors to be closed", lambda: len(os.listdir(f"/proc/{c.node.process.pid}/fd")) <= fds, 10)
    assert c.node.alive() and saved(c, "--job", "after-garbage")[0] == [1]


def unknown_request(c):
    """A request of a later version is refused, the session stays, what came with it is closed (catches: a client that loses its connection, and
    with it its waits, because it is newer than the daemon)."""
    header = struct.Struct("=IHHII")
    fds_before = len(os.listdir(f"/proc/{c.node.process.pid}/fd"))
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.settimeout(10)
    s.connect(c.node.socket)
    body = struct.pack("129s129s2xIIII4xQ64x", b"", b"", 1, 0, 0, 10000, 0)  # an observer
    s.send(header.pack(0x4C4E5243, 1, 1, 16 + len(body), 1) + body)
    opened = s.recv(65536)
    assert header.unpack(opened[:16])[2] == 66, opened
    assert struct.unpack("=Q", opened[16:24])[0] >> 62 == 3, opened  # knows PLACES and WAIT
    r, w = os.pipe()
    for request in range(2, 4):
        socket.send_fds(s, [header.pack(0x4C4E5243, 1, 63, 24, request) + bytes(8)], [r])
        message = s.recv(65536)
        assert header.unpack(message[:16])[2:] == (64, len(message), request) and b"type 63" in message, message
    os.close(r)
    os.close(w)
    s.send(header.pack(0x4C4E5243, 1, 63, 24, 0) + bytes(8))  # without an id it is no request
    while s.recv(65536):
        pass
    s.close()
    wait_until("descriptors to be closed", lambda: len(os.listdir(f"/proc/{c.node.process.pid}/fd")) <= fds_before, 10)


def wrong_descriptor(c):
    """A rank whose layout is a pipe, or a memfd shorter than announced, is told so and keeps its session (catches: an mmap that faults)."""
    header = struct.Struct("=IHHII")
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.settimeout(10)
    s.connect(c.node.socket)
    body = struct.pack("129s129s2xIIII4xQ64x", b"wrong-fd", b"start", 0, 0, 1, 10000, 8 << 20)
    s.send(header.pack(0x4C4E5243, 1, 1, 16 + len(body), 1) + body)
    message, fds, _, _ = socket.recv_fds(s, 65536, 2)
    assert header.unpack(message[:16])[2] == 66, message
    r, w = os.pipe()
    short = os.memfd_create("short", os.MFD_ALLOW_SEALING)
    for fd, says in [(r, b"no memfd"), (short, b"bytes")]:
        socket.send_fds(s, [header.pack(0x4C4E5243, 1, 2, 40, 2) + struct.pack("QQQ", 1, 2, 1000)], [fd])
        message = s.recv(65536)
        assert header.unpack(message[:16])[2] == 64 and says in message, message
    for fd in [r, w, short, *fds]:
        os.close(fd)
    s.close()
    assert saved(c, "--job", "after-wrong-fd")[0] == [1]


def trainer_killed(c):
    """Killed at any moment: its arena and descriptors come back, its step is committed or aborted, never in between."""
    args = [c.build / "tests/cluster/cluster-client", "save", "--bytes", 24 << 20, "--job", "dies", "--count", 1000]
    for i in range(6):
        t = c.spawn([*args, "--start-id", f"s{i}"])
        wait_until("the trainer to save", lambda: t.stdout.readline().startswith("sealed"), 20)
        time.sleep(0.01 * i)
        t.kill()
        t.wait()
    wait_until("the session to end", lambda: not [s for s in c.query("status")["sessions"] if s["job"] == "dies"], 10)
    listed = c.query("list", "--job", "dies")["checkpoints"]
    for k in listed:
        if k["state"] == "committed":
            assert f"verified {k['step']}" in c.client("verify", "--bytes", 24 << 20, "--job", "dies", "--step", k["step"])[1]


def peer_stopped(c):
    """A peer that hangs costs its deadline once, then others take its fragments (catches: a wait without a deadline)."""
    c.peers[5].freeze()
    try:
        begin = time.monotonic()
        assert saved(c, "--job", "hang", "--count", 3)[0] == [1, 2, 3]
        assert time.monotonic() - begin < 25
        hung = wait_until("the peer to be named", lambda: [p for p in c.query("status")["peers"] if p["state"] != "up" and p["last_error"]], 10)
        assert [p["peer"] for p in hung] == ["p6"], hung
    finally:
        c.peers[5].thaw()
    wait_until("the peer to come back", lambda: c.peers_up() == 6, 60)


def stopped_in_mid_save(c, margin, completed):
    """One peer is stopped while a save is on its way, and the commit comes. Then, with it still stopped, the node's memory and one more peer
    are lost."""
    c.node.stop()
    c.node.options["node"]["margin"] = margin
    c.node.write_config()
    c.node.start()
    c.wait_peers_up(6)
    size = ["--bytes", str(96 << 20), "--job", f"mid-save-{margin}"]
    t = c.spawn([c.build / "tests/cluster/cluster-client", "save", *size, "--count", 1])
    wait_until("the snapshot", lambda: t.stdout.readline().startswith("sealed"), 30)
    c.peers[1].freeze()
    try:
        out, err = t.communicate(timeout=60)
        assert "committed 1" in out, out + err
        if completed:
            c.wait_complete()
        c.node.kill()
        c.peers[3].kill()
        c.node.start()
        c.wait_peers_up(4)
        assert "verified 1" in c.client("verify", *size, seconds=120)[1]
    finally:
        c.peers[1].thaw()
        c.peers[3].start()
    c.wait_peers_up(6)


def stopped_in_mid_save_margin_1(c):
    """The default of 4+2: five fragments count. What the living peers could take is there soon after, and then one of them may go too
    (catches: late fragments that are forgotten, a stripe that counts with fewer than k + margin)."""
    stopped_in_mid_save(c, 1, completed=True)


def stopped_in_mid_save_margin_2(c):
    """Two peers may be lost the moment the commit is told (catches: a fragment that counts before it is synced, or counts twice)."""
    stopped_in_mid_save(c, 2, completed=False)
    c.node.stop()
    del c.node.options["node"]["margin"]
    c.node.write_config()
    c.node.start()
    c.wait_peers_up(6)


def stopped_in_mid_restore(c):
    """A peer that hangs while it is read from: parity is read instead, long before the peer has failed (catches: a restore that waits for
    every hung read, a hedge that never comes)."""
    size = ["--bytes", str(48 << 20), "--job", "mid-restore"]
    assert "committed 1" in c.client("save", *size)[1]
    c.wait_complete()
    c.node.stop()  # its arena would be nearer
    c.node.start()
    c.wait_peers_up(6)
    c.peers[1].freeze()
    try:
        assert "verified 1" in c.client("verify", *size)[1]
        status = c.query("status")  # hedged, or found out before it was asked
        p2 = next(p for p in status["peers"] if p["peer"] == "p2")
        assert status["transfer"]["reads_hedged"] > 0 or p2["state"] != "up" or p2["late"], status
    finally:
        c.peers[1].thaw()
    c.wait_peers_up(6)


def flapping_peer(c):
    """A peer that hangs again and again is avoided for longer each time, and saves go on without it (catches: a link that is trusted
    because it connects)."""
    avoided = []
    for i in range(3):
        c.peers[2].freeze()
        assert saved(c, "--job", "flap", "--start-id", f"f{i}", "--count", 2)[0] == [2 * i + 1, 2 * i + 2]
        avoided.append(wait_until("it to be avoided", lambda: [p["avoided_ms"] for p in c.query("status")["peers"]
                                                               if p["peer"] == "p3" and p["state"] == "avoided"], 20)[0])
        c.peers[2].thaw()
        c.wait_peers_up(6)
    assert [p for p in c.query("status")["peers"] if p["peer"] == "p3"][0]["failures"] >= 3, avoided


def peer_killed_in_mid_stripe(c):
    """With exactly six peers for 4+2 there is no spare: the chunk counts without it, or is striped again for five."""
    t = c.spawn([c.build / "tests/cluster/cluster-client", "save", "--bytes", 64 << 20, "--job", "stripe", "--count", 1])
    wait_until("the snapshot", lambda: t.stdout.readline().startswith("sealed"), 30)
    c.peers[2].kill()
    out, err = t.communicate(timeout=60)
    assert "committed 1" in out, out + err
    assert "verified 1" in c.client("verify", "--bytes", 64 << 20, "--job", "stripe")[1]
    c.peers[2].start()
    c.wait_peers_up(6)


def all_peers_gone(c):
    """The error names the peers, in bounded time; nothing is listed; training goes on and later saves work."""
    for p in c.peers:
        p.kill()
    begin = time.monotonic()
    steps, out = saved(c, "--job", "alone", "--timeout", 25000)
    assert steps == [] and "peer" in out, out
    assert time.monotonic() - begin < 40
    for p in c.peers:
        p.start()
    c.wait_peers_up(6)
    states = [k["state"] for k in c.query("list", "--job", "alone")["checkpoints"]]
    assert "committed" not in states, states
    assert saved(c, "--job", "alone", "--start-id", "again", "--first", 5)[0] == [5]


def damaged_files(c):
    """One byte flipped, a file cut short, a file deleted: the report names each, the restore is right all the same."""
    size = ["--bytes", str(12 << 20), "--job", "rot"]
    assert "committed 1" in c.client("save", *size)[1]
    c.wait_complete()
    c.node.kill()  # its arena would hide the damage
    for p in c.peers:
        p.stop()
    files = [next(f for f in p.stream_files() if f.parent.name == "rot") for p in c.peers[:3]]
    with open(files[0], "r+b") as f:
        f.seek(4096 + 4096 + 100)  # in the first fragment's payload
        byte = f.read(1)
        f.seek(-1, 1)
        f.write(bytes([byte[0] ^ 1]))
    for p in c.peers:
        p.start()
    c.node.start()
    c.wait_peers_up(6)
    report = c.query("check", *size)
    assert report["corrupt"] >= 1 and report["repairable"] and report["bad"][0]["peer"] == "p1", report
    assert "verified 1" in c.client("verify", *size)[1]
    c.peers[1].stop()
    os.truncate(files[1], os.path.getsize(files[1]) // 2 // 4096 * 4096)
    c.peers[1].start()
    c.wait_peers_up(6)
    report = c.query("check", *size)
    assert report["missing"] + report["corrupt"] >= 2, report
    assert "verified 1" in c.client("verify", *size)[1]
    c.peers[2].stop()
    os.unlink(files[2])
    c.peers[2].start()
    c.wait_peers_up(6)
    code, out, _ = c.client("verify", *size, check=False)  # three of six are hurt: any byte that comes out is right
    assert "differs" not in out, out
    assert code == 0 or re.search("p1|p2|p3", out), out


def disk_full(c):
    """A peer on a full device refuses streams with the reason; the others take its fragments, and deletion needs no room."""
    if os.geteuid() != 0:
        print("skipped disk_full: needs root to mount a small tmpfs")
        return
    p = c.peers[3]
    p.stop()
    store = p.dir / "small"
    store.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(store)]).returncode != 0:
        print("skipped disk_full: no tmpfs may be mounted here")
        p.start()
        return
    try:
        p.options["peer"]["path"] = str(store / "peer")
        p.write_config()
        p.start()
        c.wait_peers_up(6)
        size = ["--bytes", str(40 << 20), "--job", "full"]
        assert "committed 1" in c.client("save", *size)[1]
        assert "verified 1" in c.client("verify", *size)[1]
        status = [x for x in c.query("status")["peers"] if x["peer"] == p.name][0]
        assert re.search("free|space", status["last_error"]), status
    finally:
        p.kill()
        subprocess.run(["umount", str(store)], check=True)
        del p.options["peer"]["path"]
        p.write_config()
        p.start()
        c.wait_peers_up(6)


def config_with_a_typo(c):
    """An unknown key is an error with its line."""
    path = c.dir / "typo.conf"
    path.write_text("[daemon]\nnode = x\nsockte = /tmp/x\n")
    r = subprocess.run([c.build / "daemon/cairnd", "--config", path], capture_output=True, text=True, timeout=20)
    assert r.returncode == 2 and ":3:" in r.stderr and "sockte" in r.stderr, r


def second_daemon(c):
    """The same socket, and the same store (catches: two daemons that write one directory)."""
    twin = Daemon(c, "twin", "node", daemon__socket=c.node.socket)
    twin.start(wait=False)
    assert twin.process.wait(20) == 1 and "another cairnd" in twin.tail(), twin.tail()
    thief = Daemon(c, "thief", "peer", peer__path=str(c.peers[0].dir / "state" / "peer"))
    thief.start(wait=False)
    assert thief.process.wait(20) == 1 and "in use" in thief.tail(), thief.tail()
    assert saved(c, "--job", "still-there")[0] == [1]


DAYS = [bad_tables, bad_names, bad_ranks, fenced_start, arena_too_small, tiny_and_empty, garbage_on_the_socket, wrong_descriptor, unknown_request, config_with_a_typo,
        second_daemon, trainer_killed, peer_stopped, stopped_in_mid_save_margin_1, stopped_in_mid_save_margin_2, stopped_in_mid_restore, flapping_peer,
        peer_killed_in_mid_stripe, damaged_files, disk_full, all_peers_gone]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    parser.add_argument("--only", help="one day's name")
    a = parser.parse_args()
    with Cluster(a.build, peers=6, node__fragment_late_ms=1000, node__connect_ms=1000, node__backoff_ms=200,
                 node__sync_late_ms=4000) as c:
        c.start_all()
        for day in DAYS:
            if a.only in (None, day.__name__):
                begin = time.monotonic()
                day(c)
                print(f"ok {day.__name__} {time.monotonic() - begin:.1f} s", flush=True)
        assert c.node.alive() and all(p.alive() for p in c.peers)
    print(f"{len(DAYS) if not a.only else 1} passed, 0 failed")


main()
