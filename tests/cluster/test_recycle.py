#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""New checkpoints over the files of deleted ones: every byte is the new one's, whoever is killed meanwhile.

Each function says what it catches. That it is faster is measured in bench/."""
import argparse
import json
import os
import pathlib
import random
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "lib"))
from cluster import Cluster, wait_until  # noqa: E402
from trainer import Book, Trainer  # noqa: E402

MIB = 1 << 20
SIZE = ["--bytes", str(12 * MIB)]
BLOCK = 4096


def committed(c, job):
    listed = wait_until("the list of checkpoints", lambda: c.query("list", "--job", job), 20)
    return {k["step"]: k["incarnation"] for k in listed["checkpoints"] if k["state"] == "committed"}


def verified(c, job, step, *args):
    out = c.client("verify", *SIZE, "--job", job, "--step", step, *args)[1]
    assert f"verified {step}" in out, out


def scrubbed_bad(c):
    out = c.run([c.build / "client" / "tool" / "cairn", "--json", "scrub"], check=False)[1]
    answer = json.loads(out)
    assert answer["complete"], answer
    return answer["bad"]


def files_of(peer, job):
    return [f for f in peer.stream_files() if f.parent.name == job]


class Files:
    """The job's files so far, held open: a new one cannot have the inode of one that is gone."""

    def __init__(self):
        self.names, self.again = {}, 0

    def look(self, c, job):
        for p in c.peers:
            for f in files_of(p, job):
                try:
                    file = f.open("rb")
                except FileNotFoundError:
                    continue  # deleted just now
                name, first = self.names.setdefault(os.fstat(file.fileno()).st_ino, (f.name, file))
                self.again += name != f.name
                if first is not file:
                    file.close()

    def close(self):
        for _, file in self.names.values():
            file.close()


def over_and_over(c):
    """Catches: files that are not used again though that is the default; a byte of the deleted checkpoint in the new one, before and after
    the peers start again; more kept than one checkpoint; what a stopped peer keeps."""
    c.client("save", *SIZE, "--job", "over", "--count", 1)
    c.tool("retain", "over", "last=1")
    files = Files()
    for i in range(5):
        files.look(c, "over")
        c.client("save", *SIZE, "--job", "over", "--count", 1, "--start-id", f"over-{i}")
        steps = committed(c, "over")
        verified(c, "over", max(steps))
        wait_until("one checkpoint, or what it resumed from, is left", lambda: len(committed(c, "over")) <= 2, 30)
    files.look(c, "over")
    files.close()
    assert files.again > 0, "no file was used again"
    for p in c.peers:
        p.stop()
        assert not list((p.dir / "state/peer/recycle").iterdir())
        p.start()
    c.wait_peers_up(len(c.peers))
    verified(c, "over", max(committed(c, "over")))
    assert scrubbed_bad(c) == 0


def with_an_old_tail(c):
    """What a writer that was killed leaves behind its last record: the rest of an old record, old records, and where those end. Catches: an
    old record that is taken for damage, or for data of the new stream; a last record that is damaged and taken for an old one."""
    c.client("save", *SIZE, "--job", "tail", "--count", 2, "--start-id", "tail")
    p = c.peers[0]
    p.stop()
    new, old = sorted((f for f in files_of(p, "tail") if f.stat().st_size > 3 * MIB), reverse=True)[:2]
    before, records = new.read_bytes(), old.read_bytes()
    blank = b"CRNBLANK" + bytes(BLOCK - 8)
    cut = 2 * BLOCK + 100 * BLOCK  # in the middle of a record
    tails = {
        "old records": records[cut:],
        "one old record's end": records[-5 * BLOCK:] + blank,
        "old records, the last one cut off": records[cut:-BLOCK] + blank,
        "nothing": blank,
        "zeros": bytes(3 * MIB),
    }
    for what, tail in tails.items():
        new.write_bytes(before + tail)
        p.start()
        c.wait_peers_up(len(c.peers))
        assert scrubbed_bad(c) == 0, what
        verified(c, "tail", 2)
        p.stop()
    for what, tail in {"a damaged record": records[3 * BLOCK:9 * BLOCK], "one, and zeros": records[3 * BLOCK:9 * BLOCK] + bytes(2 * MIB)}.items():
        new.write_bytes(before + tail)
        p.start()
        c.wait_peers_up(len(c.peers))
        assert scrubbed_bad(c) == 1, what
        p.stop()
    new.write_bytes(before)
    p.start()
    c.wait_peers_up(len(c.peers))


def killed_in_mid_stream(c, seed):
    """Two ranks save without a pause over the files of what retention deletes, while peers are killed. Catches: a stream that loses what was
    synced, or shows what the file held before; a file of the killed process that its successor hands out."""
    rng, book = random.Random(seed), Book()
    trainer = Trainer(c, 1, book, size=6 * MIB, job="killed")
    wait_until("the first commit", lambda: book.told, 30)
    c.tool("retain", "killed", "last=2")
    over = 0
    for _ in range(6):
        told = len(book.told)
        wait_until("commits, some of them over old files", lambda: len(book.told) > told + 4, 30)
        p = rng.choice(c.peers)
        time.sleep(rng.uniform(0, 0.1))
        over += p.alive() and any((p.dir / "state/peer/recycle").iterdir())
        p.kill()
        left = {f.name: f.stat().st_ino for f in files_of(p, "killed")}
        p.start()
        assert not list((p.dir / "state/peer/recycle").iterdir())
        assert {f.name: f.stat().st_ino for f in files_of(p, "killed")}.items() <= left.items()
        assert not trainer.ended(), "a rank ended"
    trainer.join()
    c.wait_peers_up(len(c.peers))
    # The save that was on its way when the ranks ended: one that not both had begun would wait for its deadline, but a new start ends it; one
    # that both had filled commits, which deletes one more.
    c.client("save", "--bytes", 6 * MIB, "--job", "killed", "--start-id", "after", "--count", 0)
    c.wait_complete()
    steps = committed(c, "killed")
    assert max(book.told) in steps
    for step, incarnation in sorted(steps.items())[-2:]:  # older ones may be deleted just now
        out = c.client("verify", "--bytes", 6 * MIB, "--world", 2, "--job", "killed", "--step", step, "--seed", book.seed(step, incarnation))[1]
        assert f"verified {step}" in out, out
    print(f"{len(book.told)} commits, {over} of 6 peers were killed while they kept files")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args()
    with Cluster(a.build, peers=3, common={"retention__interval_s": 1, "peer__scrub_mib_s": 0}, node__backoff_ms=100, node__repair_every_s=0) as c:
        c.start_all()
        for day in (over_and_over, with_an_old_tail, lambda c: killed_in_mid_stream(c, a.seed)):
            print(f"--- {getattr(day, '__name__', 'killed')}", flush=True)
            day(c)
    print("3 passed, 0 failed")


main()
