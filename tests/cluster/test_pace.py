#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Paced saves: they are spread over the time until the next one and committed in time, nobody who waits is held up, rates hold, and a
daemon that dies in the middle of one goes on with it.

Each function says what it catches. How fast anything is, is measured in bench/."""
import argparse
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "lib"))
from cluster import Cluster, wait_until  # noqa: E402

MIB = 1 << 20
SIZE = ["--bytes", str(24 * MIB)]
PAUSE_MS = 3000  # between two saves, where something happens before the next one comes


def trainer(c, *args):
    return c.spawn([c.build / "tests/cluster/cluster-client", "save", *SIZE, *args], stdin=-1)


def read_until(t, start):
    while True:
        line = t.stdout.readline()
        assert line, f"the trainer ended before {start!r}: {t.stderr.read()}"
        if line.startswith(start):
            return line.strip()


def flush_of(c, job, step):
    status = c.query("status")
    found = [f for f in status["flushes"] if f["job"] == job and f["step"] == step]
    return found[0] if found else None


def committed(c, job):
    listed = c.query("list", "--job", job)
    return [k["step"] for k in listed["checkpoints"] if k["state"] == "committed"] if listed else []


def verified(c, job, step):
    out = c.client("verify", *SIZE, "--job", job, "--step", step)[1]
    assert f"verified {step}" in out, out


def spread_and_committed(c):
    """Catches: a plan that is not followed (the flush is over at once), one that is longer than the time it has, a flush without a history
    that is paced all the same. Steps are 1.5 s apart; the third has a history of two intervals."""
    t = trainer(c, "--job", "spread", "--count", 6, "--pause", 1500, "--no-wait")
    assert c.query("status")["pace"] == {"rate_bytes_s": 0, "peer_rate_bytes_s": 0, "spread": True}
    for step in (1, 2):
        read_until(t, f"sealed {step}")
        f = flush_of(c, "spread", step)
        assert f is None or (not f["paced"] and "not known" in f["full_speed_because"]), f
    for step in (3, 4, 5):
        read_until(t, f"sealed {step}")
        assert step - 1 in committed(c, "spread"), f"step {step - 1} was not committed when {step} was sealed"
        f = wait_until(f"step {step} is drained", lambda: flush_of(c, "spread", step))
        assert f["paced"] and f["full_speed_because"] is None and 0 < f["plan_ms"] <= 2250, f  # a save on a busy machine takes its time too
        assert f["durable_parts"] < f["parts"], f
    out, err = t.communicate(timeout=60)
    assert t.returncode == 0, out + err
    wait_until("the last one is committed", lambda: 6 in committed(c, "spread"))
    verified(c, "spread", 5)
    verified(c, "spread", 6)


def learn(c, job, *args):
    """A trainer whose third save is on its way, paced over some seconds."""
    t = trainer(c, "--job", job, "--count", 3, "--pause", PAUSE_MS, "--lingers", *args)
    read_until(t, "sealed 3")
    f = wait_until("it is drained", lambda: flush_of(c, job, 3))
    assert f["paced"] and f["plan_ms"] > PAUSE_MS / 2, f
    return t


def who_waits_is_not_held_up(c):
    """Catches: a wait that is not told to the daemon, or that changes nothing: its deadline is shorter than the plan."""
    t = learn(c, "wait", "--timeout", PAUSE_MS // 2)
    t.stdin.write("w")
    t.stdin.flush()
    read_until(t, "committed 3")
    assert t.wait(30) == 0
    verified(c, "wait", 3)


def who_waits_hurries_other_nodes(build):
    """Catches: a node that takes its time while a process on another node waits for the checkpoint of both."""
    with Cluster(build, peers=3, nodes=2, pace__spread=1) as c:
        c.start_all()
        args = ["save", *SIZE, "--job", "crew", "--world", 2, "--count", 3, "--pause", PAUSE_MS, "--lingers", "--timeout", PAUSE_MS // 2]
        ranks = [c.spawn([c.build / "tests/cluster/cluster-client", *args, "--rank", i], node=n, stdin=-1) for i, n in enumerate(c.nodes)]
        for t in ranks:
            read_until(t, "sealed 3")
        for i, n in enumerate(c.nodes):
            wait_until(f"rank {i} is drained", lambda n=n: any(f["paced"] for f in c.query("status", node=n)["flushes"]))
        ranks[1].stdin.write("w")
        ranks[1].stdin.flush()
        read_until(ranks[1], "committed 3")
        for t in ranks:
            t.kill()
            t.wait()


def the_end_hurries(c):
    """Catches: a flush that takes its time though its process has ended."""
    t = learn(c, "ending")
    t.kill()
    t.wait()
    wait_until("it goes at full speed", lambda: not (f := flush_of(c, "ending", 3)) or "ended" in (f["full_speed_because"] or ""), PAUSE_MS / 2000)
    wait_until("what a process left behind is committed", lambda: 3 in committed(c, "ending"))


def killed_in_the_middle(c):
    """Catches: a paced flush that is lost with its daemon, or that the next one paces by a history that it does not have."""
    t = learn(c, "killed")
    c.node.kill()
    c.node.start()
    wait_until("step 3 is committed after the restart", lambda: 3 in committed(c, "killed"))
    t.kill()
    t.wait()
    verified(c, "killed", 3)


def stored_mib(c, job):
    return c.query("list", "--job", job)["checkpoints"][0]["stored_bytes"] / MIB


def rates_hold(build):
    """Catches: bytes that nobody counts (parity, a second attempt), a rate that is applied once. What is stored of a checkpoint, against the time
    its save took: the rate, a burst of a tenth of a second and the last chunk, of three fragments, are what it may have. What waits for its
    rate is late for nobody, and nobody fails."""
    for option, rate, of_all in (("pace__rate_mib_s", 8, 1), ("pace__peer_rate_mib_s", 3, 1 / 3)):
        with Cluster(build, peers=3, **{option: rate}) as c:
            c.start_all()
            began = time.monotonic()
            c.client("save", *SIZE, "--job", "rate", "--count", 1)
            window = time.monotonic() - began
            mib = stored_mib(c, "rate") * of_all
            assert mib <= rate * (window + 0.1) + 3, f"{option}: {mib:.1f} MiB in {window:.2f} s"
            assert mib > 3 * rate, f"{mib} MiB are too few to say anything"
            status = c.query("status")
            assert status["transfer"]["fragments_dropped"] == 0 and not any(p["failures"] for p in status["peers"]), status
            verified(c, "rate", 1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    build = parser.parse_args().build
    with Cluster(build, peers=3, pace__spread=1) as c:
        c.node.store = {}
        c.start_all()
        for day in (spread_and_committed, who_waits_is_not_held_up, the_end_hurries, killed_in_the_middle):
            print(f"--- {day.__name__}", flush=True)
            day(c)
    for day in (who_waits_hurries_other_nodes, rates_hold):
        print(f"--- {day.__name__}", flush=True)
        day(build)


main()
