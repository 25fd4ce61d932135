#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Snapshots that are filled in steps (PARTS, or packed by their device: PACKED), and compared with what their source was (SUMS), by a rank that speaks the local protocol itself.

Each function is one day of it and says what it catches."""
import argparse
import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "lib"))
from cluster import Cluster, wait_until  # noqa: E402

PARTS = 24
SNAPSHOT, DURABLE, COMMITTED = 1, 2, 3
CORRUPT = "what arrived in the arena is not what the device read"


class Rank:
    def __init__(self, c, job, program="cluster-filling", arguments=(PARTS,)):
        self.c, self.job = c, job
        self.child = c.spawn([c.build / "tests/cluster" / program, job, *arguments], stdin=-1)
        assert self.child.stdout.readline() == "open\n", self.child.stderr.read()

    def do(self, *command, says=None):
        self.child.stdin.write(" ".join(str(w) for w in command) + "\n")
        self.child.stdin.flush()
        line = self.child.stdout.readline().strip()
        assert line and (says is None or line.split(" ")[0] == says), (command, line, self.child.stderr.read() if not line else "")
        return line

    def flush(self):
        return next((f for f in self.c.query("status")["flushes"] if f["job"] == self.job), None)

    def outcome(self):
        """Of the save: "committed", or why not."""
        while True:
            _, state, code, *why = self.do("event", says="event").split(" ", 3)
            if int(code) < 0:
                return code, why[0]
            if int(state) == COMMITTED:
                return "committed"

    def begin(self, step, parts):
        """Copies some parts and says so."""
        self.do("begin", step, says="granted")
        self.do("copy", 0, parts)
        self.do("parts", parts, says="ok")

    def commit(self, step, begun):
        self.do("copy", begun, PARTS)
        self.do("filled", says="ok")
        assert self.outcome() == "committed"
        assert self.do("check", step).strip() == "right"

    def end(self):
        self.child.stdin.close()
        assert self.child.wait(30) == 0


def state_of(c, job, step):
    return next((k["state"] for k in c.query("list", "--job", job)["checkpoints"] if k["step"] == step), "absent")


def stored(c, job, step):
    """Streams that hold something of it."""
    return [f for p in c.peers for f in p.stream_files() if f.parent.name == job and int(f.name.split(".")[0]) == step]


def durable_early(rank, parts):
    """What is in place is on the peers, and nobody was told."""
    flush = wait_until("parts that are stored early", lambda: (f := rank.flush()) and f["taken_parts"] == parts and f)
    assert flush["parts"] == PARTS and not flush["durable"], flush


def in_steps(c):
    """Catches a snapshot that is committed before it is filled, and bytes that are read before they are in place."""
    r = Rank(c, "steps")
    r.begin(1, 8)
    durable_early(r, 8)
    r.do("copy", 8, 17)
    r.do("parts", 17, says="ok")
    r.do("parts", 17, says="ok")
    durable_early(r, 16)
    assert stored(c, "steps", 1) and state_of(c, "steps", 1) == "undecided"
    r.do("sums", 5, -1, says="ok")
    r.commit(1, 17)
    assert "not under way" in r.do("parts", PARTS, says="error")
    r.begin(2, PARTS)
    r.commit(2, PARTS)
    r.do("begin", 3, says="granted")  # as clients do that know of no parts
    r.commit(3, 0)
    r.end()


def given_up(c):
    """Catches fragments of a save that never was, taken for one; pages that are granted while they are being read."""
    r = Rank(c, "given")
    r.begin(1, 16)
    durable_early(r, 16)
    r.do("drop", says="ok")
    code, why = r.outcome()
    assert "gave" in why, why
    r.do("parts", 17, says="error")
    r.begin(2, 16)
    durable_early(r, 16)
    r.child.send_signal(signal.SIGKILL)
    r.child.wait()
    r = Rank(c, "given")
    r.begin(3, 12)
    r.commit(3, 12)
    assert [state_of(c, "given", s) for s in (1, 2, 3)] == ["aborted", "aborted", "committed"]
    wait_until("fragments of saves that never were to go", lambda: not stored(c, "given", 1) and not stored(c, "given", 2))
    r.end()


def daemon_killed(c):
    """The next daemon begins again from the first part (catches: fragments of two daemons in one manifest, a mark that outlives its daemon)."""
    r = Rank(c, "killed")
    r.begin(1, 16)
    durable_early(r, 16)
    r.do("sums", 9, 3, says="ok")  # forgotten with it: else the save would fail
    c.node.kill()
    c.node.start()
    c.wait_peers_up(len(c.peers))
    r.do("back", says="ok")
    r.do("parts", 4, says="ok")
    durable_early(r, 4)
    r.commit(1, 16)
    r.begin(2, 8)
    r.commit(2, 8)
    r.end()


def differs(c):
    """What the device read and what arrived are not the same, in a part that is stored already, and in one that is not."""
    r = Rank(c, "differs")
    for step, part in (1, 3), (2, 20):
        r.begin(step, 8)
        durable_early(r, 8)
        r.do("sums", 1 << 60, part, says="ok")
        r.do("copy", 8, PARTS)
        r.do("filled")  # that one part differs may be known before
        code, why = r.outcome()
        assert int(code) == -11 and f"rank 0 part {part}: {CORRUPT}" in why and 'tensor "w"' in why, (code, why)
        assert state_of(c, "differs", step) == "aborted"
        assert f"part {part}: {CORRUPT}; the save fails; tensor \"w\"" in c.node.tail()
    r.begin(3, 8)
    before = c.query("status")["encode"]
    r.do("sums", 2, -1, says="ok")
    r.commit(3, 8)
    after = c.query("status")["encode"]
    assert after["compared_bytes"] - before["compared_bytes"] == (PARTS << 20) - 1000 and after["early_bytes"] >= before["early_bytes"], (before, after)
    r.end()


def rules(c):
    """Catches marks and sums that are taken though they cannot be."""
    for step, wrong in enumerate(("parts 9", "parts 25", "sums 1 -1 open", "sums 1 -1 short", "sums 1 -1 again")):
        r = Rank(c, "rules")
        r.begin(1000 + step, 10)
        r.do(wrong, says="gone")
        r.end()
    r = Rank(c, "rules")
    r.begin(2000, 10)
    r.commit(2000, 10)
    r.end()


def begin_packed(r, step, parts):
    r.do("begin", step, "packed", says="granted")
    r.do("pack", 0, parts)
    r.do("packed", 0, parts, says="ok")


def commit_packed(r, step, begun):
    r.do("pack", begun, PARTS)
    r.do("packed", begun, PARTS - begun, says="ok")
    r.do("filled", says="ok")
    assert r.outcome() == "committed"
    assert r.do("check", step).strip() == "right"


def packed(c):
    """Catches pages that stay packed (what is restored from memory), parts that are encoded before it is known how they lie, and sums of packed bytes."""
    r = Rank(c, "packed")
    before = c.query("status")
    begin_packed(r, 1, 8)
    durable_early(r, 8)
    r.do("sums", 5, -1, says="ok")
    commit_packed(r, 1, 8)
    after = c.query("status")
    hot = after["restore"]["hot_bytes"] - before["restore"]["hot_bytes"]
    plain, coded = (after["encode"][k] - before["encode"][k] for k in ("packed_plain_bytes", "packed_bytes"))
    assert hot == (PARTS << 20) - 1000, hot
    assert plain == ((PARTS - 4) << 20) - 1000 and plain * 0.3 < coded < plain * 0.95, (plain, coded)
    assert "not under way" in r.do("packed", 0, 8, says="error")
    begin_packed(r, 2, PARTS)  # packed, and then not, in the same pages
    r.do("filled", says="ok")
    assert r.outcome() == "committed" and r.do("check", 2).strip() == "right"
    r.do("begin", 3, says="granted")
    r.commit(3, 0)
    for step, part in (4, 6), (5, 20):  # stored before the rest was said, and after
        begin_packed(r, step, 4)
        r.do("pack", 4, PARTS)
        r.do("spoil", part, says="spoilt")
        r.do("packed", 4, PARTS - 4, says="ok")
        code, why = r.outcome()
        assert int(code) == -11 and f"rank 0 part {part}: what arrived in the arena is not what the device packed" in why and 'tensor "w"' in why, (code, why)
        r.do("drop", says="ok")
    begin_packed(r, 6, 4)
    commit_packed(r, 6, 4)
    r.end()


def packed_rules(c):
    """Catches lengths that are taken though they cannot be, and a snapshot that counts before it is known how its parts lie."""
    for step, (begin, wrong) in enumerate(((8, "parts 9"), (8, "packed 7 1"), (8, "packed 9 1"), (8, "packed 8 17"), (8, "packed 8 1 1048576"), (0, "packed 0 1"), (8, "filled"))):
        r = Rank(c, "packed-rules")
        if begin:
            begin_packed(r, 1000 + step, begin)
        else:
            r.do("begin", 1000 + step, says="granted")
        r.do(wrong, says="gone")
        r.end()
    r = Rank(c, "packed-rules")
    begin_packed(r, 2000, 8)
    r.do("pack", 8, PARTS)
    r.do("word", says="written")  # and its lengths are never said
    r.child.send_signal(signal.SIGKILL)
    r.child.wait()
    wait_until("a snapshot of which not all is known to be given up", lambda: state_of(c, "packed-rules", 2000) == "aborted")
    assert "before it had said how all parts were packed" in c.node.tail()
    r = Rank(c, "packed-rules")
    begin_packed(r, 3000, 8)
    commit_packed(r, 3000, 8)
    r.end()


def packed_and_killed(c):
    """The next daemon does not know what lies in the pages (catches: packed bytes that are saved as they are, pages that are never free again, a durable snapshot that is thrown away)."""
    r = Rank(c, "packed-killed")
    for step, filled, asks in (1, False, True), (2, True, True), (3, False, False):
        begin_packed(r, step, 16)
        durable_early(r, 16)
        if filled:
            for p in c.peers:
                p.freeze()
            r.do("pack", 16, PARTS)
            r.do("packed", 16, PARTS - 16, says="ok")
            r.do("filled", says="ok")
        c.node.kill()
        for p in c.peers if filled else ():
            p.thaw()
        c.node.start()
        c.wait_peers_up(len(c.peers))
        if asks:
            why = r.do("back", says="error")
            assert f"step {step}: it was packed by its device, and the daemon that knew how has gone" in why, why
        else:
            r.do("return", says="ok")
        wait_until("the lost save to be given up", lambda: state_of(c, "packed-killed", step) == "aborted")
    begin_packed(r, 4, 8)
    commit_packed(r, 4, 8)
    c.node.kill()
    c.node.start()
    c.wait_peers_up(len(c.peers))
    r.do("back", says="ok")
    assert r.do("check", 4).strip() == "right" and c.query("status")["restore"]["hot_bytes"] == (PARTS << 20) - 1000
    r.end()


def devices(c):
    """libcairn's own words, of copies that go on behind seal: what is encoded early, compared with what the device has read, and right."""
    mib = 160
    before = c.query("status")["encode"]
    r = Rank(c, "device", "cluster-device", (mib,))
    r.do("save", 1, 40 << 20, says="sealed")
    wait_until("parts that are stored early", lambda: (f := r.flush()) and f["early_parts"] > 0)
    r.do("rate", 0, says="set")
    r.do("wait", says="committed")
    r.do("check", 1, says="right")
    after = c.query("status")["encode"]
    assert after["early_bytes"] - before["early_bytes"] > 0, (before, after)
    r.end()
    r = Rank(c, "compared", "cluster-device", (12, "sums"))
    r.do("save", 1, 12 << 20, says="sealed")
    c.node.freeze()
    r.do("spoil", 5, says="spoilt")
    c.node.thaw()
    failed = r.do("wait", says="failed")
    assert CORRUPT in failed, failed
    r.do("save", 2, 0, says="sealed")
    r.do("wait", says="committed")
    r.do("check", 2, says="right")
    assert c.query("status")["encode"]["compared_bytes"] - after["compared_bytes"] >= 12 << 20
    r.end()


def packed_on_device(c):
    """libcairn's packed saves: catches bytes that are not the tensor's, in the arena or on the peers; parts that are encoded again; a way that is
    not tried."""
    mib = 24
    before = c.query("status")["encode"]
    r = Rank(c, "packed-device", "cluster-device", (mib, "pack"))
    for step in range(1, 5):  # plain, packed, plain, packed
        r.do("save", step, 0, says="sealed")
        r.do("wait", says="committed")
        assert r.do("packed") == f"{mib * (step % 2 == 0)} of it were packed", step
        r.do("check", step, says="right")  # from the arena
    after = c.query("status")["encode"]
    came = after["packed_plain_bytes"] - before["packed_plain_bytes"]
    assert came == 2 * mib << 20 and after["packed_bytes"] - before["packed_bytes"] < came * 0.9, (before, after)
    r.do("check", 2, says="right")  # from the peers
    r.end()


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--build", required=True, type=pathlib.Path)
    p.add_argument("--only")
    a = p.parse_args()
    with Cluster(a.build, peers=4) as c:
        c.start_all()
        for test in in_steps, given_up, daemon_killed, differs, rules, packed, packed_rules, packed_and_killed, devices, packed_on_device:
            if a.only in (None, test.__name__):
                test(c)
                print(f"{test.__name__}: ok", flush=True)


if __name__ == "__main__":
    main()
