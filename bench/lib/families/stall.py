# SPDX-License-Identifier: Apache-2.0
"""What a save takes from training: the copy, beside the same copy by the fastest of some loops that were made apart, in turns."""
import stats
from context import MIB, saved, settle

GROUP = "the stall"
TAIL = 3  # weighs so many loops
SHARES = (1, 10, 50)  # percent of the pages that change from save to save


def loops(ctx):
    return 5 + 2 + TAIL + (len(SHARES) if ctx.tracks else 0)


LOOPS = loops


def pairs(ctx, c, rank, threads, n=0, weight=1):
    """(stalls, copies) with idle daemons; which of the two is first changes from pair to pair."""
    stalls, copies = [], []
    for i, counts in enumerate(ctx.turns(n, warm=2, weight=weight)):
        def copy():
            s = rank.ask(f"copy best {threads}")["s"]
            if counts:
                copies.append(s)

        if i % 2:
            copy()
        stall = saved(rank)[0]
        settle(c)
        if not i % 2:
            copy()
        if counts:
            stalls.append(stall)
    return stalls, copies


def idle(ctx):
    for table, threads, suffix, target in (("gpt2", 1, "", 1.05), ("gpt2", ctx.threads, "_threads", 1.05), ("llama", 1, "_llama", 1.05),
                                           ("small", 1, "_10000_tensors", 1.3)):
        with ctx.cluster(1, "raw", 4 << 30) as c:
            c.start_all()
            with ctx.rank(c, table, ctx.sizes.llama_bytes if table == "llama" else 0, threads) as rank:
                stalls, copies = pairs(ctx, c, rank, threads)
                loop = rank.ask(f"copy best {threads}")["loop"]
                note = f"{rank.hello['bytes'] / MIB:.0f} MiB, {rank.hello['tensors']} tensors, {threads} threads; fastest loop: {loop}"
        row = ctx.report.add(f"stall{suffix}", "s", stalls, limit=stats.summary(copies)["median"], limit_name="copy", group=GROUP, note=note)
        ctx.floors[row["name"]] = row["median"]
        ctx.report.add(f"stall_over_copy{suffix}", "ratio", stats.ratios(stalls, copies), target=("<=", target), group=GROUP)


def beside_a_drain(c, rank, what):
    settle(c)
    rank.ask("save")
    s = rank.ask("save")["stall_s"] if what == "save" else rank.ask("copy best 1")["s"]
    rank.ask("commit")
    return s


def draining(ctx):
    """The save before drains: a second save, or the same copy, takes place beside it. Which of them comes first takes turns; behind the pairs there
    are only saves, for the 99th percentile."""
    stalls, copies = [], []
    with ctx.cluster(1, "raw", 2 << 30, arenas=2) as c:
        c.start_all()
        with ctx.rank(c, bytes_=ctx.sizes.tail_bytes, threads=1, snapshots=2) as rank:
            rank.ask("copy best 1")  # finds the fastest loop, alone
            saved(rank)
            saved(rank)
            for i, _ in enumerate(ctx.turns()):
                for what, into in (("save", stalls), ("copy", copies))[:: 1 if i % 2 else -1]:
                    into.append(beside_a_drain(c, rank, what))
            tail = [beside_a_drain(c, rank, "save") for _ in ctx.turns(max(1, ctx.sizes.tail - len(stalls)), weight=2)]
            note = f"{rank.hello['bytes'] / MIB:.0f} MiB; the save before is on its way to one peer"
    ctx.report.add("stall_draining", "s", stalls + tail, limit=stats.summary(copies)["median"], limit_name="copy", group=GROUP, note=note)
    ctx.report.add("stall_draining_over_copy_draining", "ratio", stats.ratios(stalls, copies), target=("<=", 1.05), group=GROUP)


def tail(ctx):
    with ctx.cluster(1, "raw", 1 << 30) as c:
        c.start_all()
        with ctx.rank(c, bytes_=ctx.sizes.tail_bytes, threads=1) as rank:
            stalls, copies = pairs(ctx, c, rank, 1, ctx.sizes.tail, TAIL)
    note = f"{ctx.sizes.tail_bytes // MIB} MiB, idle daemons"
    if len(stalls) < 100:
        ctx.report.missing("stall_p99", "s", f"the time was enough for {len(stalls)} saves only", group=GROUP)
    else:
        ctx.report.add("stall_p99", "s", stalls, limit=stats.quantile(copies, 0.99), limit_name="p99 of the copy", group=GROUP, note=note)


class Changes:
    """Two ranks with the same tensors, of which one tracks its pages, and the same share of pages changed in both, in turns."""

    def __init__(self):
        self.over_full, self.over_plain, self.cost, self.plain_cost, self.copied = [], [], [], [], []

    def turn(self, c, tracked, plain, share, counts):
        touched = {r: r.ask(f"touch {share}")["s"] for r in (tracked, plain)}
        full = tracked.ask("copy best 1")["s"]
        stall = {}
        for r in (plain, tracked):
            settle(c)
            answer = r.ask("save")
            r.ask("commit")
            stall[r] = answer["stall_s"]
        if counts:
            self.over_full.append(stall[tracked] / full)
            self.over_plain.append(stall[tracked] / stall[plain])
            self.cost.append(stall[tracked] + touched[tracked] - touched[plain])  # its first writes to pages are faults
            self.plain_cost.append(stall[plain])
            self.copied.append(answer["copied"])

    def report(self, ctx, percent, tracks):
        add, middle = ctx.report.add, stats.summary
        note = f"{percent}% of pages changed since the save before, any place"
        if not tracks:
            for name, unit in ((f"stall_{percent}pct_over_full", "ratio"), (f"cost_per_save_tracked_{percent}pct", "s")):
                ctx.report.missing(name, unit, "this build tracks no pages", target=("<=", 0.10) if name == "stall_1pct_over_full" else None, group=GROUP)
            return
        add(f"stall_{percent}pct_over_full", "ratio", self.over_full, target=("<=", 0.10) if percent == 1 else None, group=GROUP,
            note=f"{note}; beside a copy of all; {middle(self.copied)['median']:.0%} of the bytes were copied")
        add(f"stall_{percent}pct_over_untracked", "ratio", self.over_plain, group=GROUP, note="beside a save of the same state that tracks nothing")
        add(f"cost_per_save_tracked_{percent}pct", "s", self.cost, limit=middle(self.plain_cost)["median"], limit_name="untracked save", group=GROUP,
            note="stall, and what changing the pages took longer than without tracking (faults), daemons idle")


def changed(ctx):
    size = ctx.sizes.touched_bytes
    with ctx.cluster(1, "raw", size, arenas=3) as c:
        c.start_all()
        with ctx.rank(c, bytes_=size, threads=1, job="tracked", track=True) as tracked, ctx.rank(c, bytes_=size, threads=1, job="plain") as plain:
            tracks = tracked.hello["tracks"]
            for percent in SHARES:
                changes = Changes()
                for counts in ctx.turns(warm=2) if tracks else ():
                    changes.turn(c, tracked, plain, percent / 100, counts)
                changes.report(ctx, percent, tracks)


def run(ctx):
    idle(ctx)
    draining(ctx)
    changed(ctx)
    tail(ctx)
