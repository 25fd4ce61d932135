# SPDX-License-Identifier: Apache-2.0
"""What a save takes from training: the copy, beside the same copy by a loop that was made apart, in turns."""
import stats
from context import MIB, saved, settle

GROUP = "the stall"


def pairs(c, rank, threads, n):
    """(stalls, copies) with idle daemons; which of the two is first changes from pair to pair."""
    stalls, copies = [], []
    for i in range(n + 2):  # two to warm up
        def copy():
            copies.append(rank.ask(f"copy best {threads}")["s"])

        if i % 2:
            copy()
        stalls.append(saved(rank)[0])
        settle(c)
        if not i % 2:
            copy()
    return stalls[2:], copies[2:]


def idle(ctx):
    for table, threads, suffix, target in (("gpt2", 1, "", 1.05), ("gpt2", ctx.threads, "_threads", 1.05), ("llama", 1, "_llama", 1.05),
                                           ("small", 1, "_10000_tensors", 1.3)):
        with ctx.cluster(1, "raw", 2 << 30) as c:
            c.start_all()
            with ctx.rank(c, table, ctx.sizes.llama_bytes if table == "llama" else 0, threads) as rank:
                stalls, copies = pairs(c, rank, threads, ctx.sizes.pairs)
                note = f"{rank.hello['bytes'] / MIB:.0f} MiB, {rank.hello['tensors']} tensors, {threads} threads"
        row = ctx.report.add(f"stall{suffix}", "s", stalls, limit=stats.summary(copies)["median"], limit_name="copy", group=GROUP, note=note)
        ctx.floors[row["name"]] = row["median"]
        ctx.report.add(f"stall_over_copy{suffix}", "ratio", stats.ratios(stalls, copies), target=("<=", target), group=GROUP)


def draining(ctx):
    """The save before drains: a second save, or the same copy, takes place beside it. Which of them comes first takes turns."""
    n = max(ctx.sizes.pairs, ctx.sizes.tail)
    stalls, copies = [], []
    size = ctx.sizes.tail_bytes if ctx.sizes.tail else 0
    with ctx.cluster(1, "raw", 2 << 30, arenas=2) as c:
        c.start_all()
        with ctx.rank(c, bytes_=size, threads=1, snapshots=2) as rank:
            saved(rank)
            saved(rank)
            for i in range(n):
                for what in ("save", "copy") if i % 2 else ("copy", "save"):
                    settle(c)
                    rank.ask("save")
                    if what == "save":
                        stalls.append(rank.ask("save")["stall_s"])
                    else:
                        copies.append(rank.ask("copy best 1")["s"])
                    rank.ask("commit")
            note = f"{rank.hello['bytes'] / MIB:.0f} MiB; the save before is on its way to one peer"
    few = "" if n >= 100 else "; too few for a p99"
    ctx.report.add("stall_draining", "s", stalls, limit=stats.summary(copies)["median"], limit_name="copy", group=GROUP, note=note + few)
    ctx.report.add("stall_draining_over_copy_draining", "ratio", stats.ratios(stalls, copies), target=("<=", 1.05), group=GROUP)


def tail(ctx):
    if not ctx.sizes.tail:
        ctx.report.missing("stall_p99", "s", "a quick run has too few saves", group=GROUP)
        return
    with ctx.cluster(1, "raw", 1 << 30) as c:
        c.start_all()
        with ctx.rank(c, bytes_=ctx.sizes.tail_bytes, threads=1) as rank:
            stalls, copies = pairs(c, rank, 1, ctx.sizes.tail)
    ctx.report.add("stall_p99", "s", stalls, limit=stats.quantile(copies, 0.99), limit_name="p99 of the copy", group=GROUP,
                   note=f"{ctx.sizes.tail_bytes // MIB} MiB, idle daemons")


def changed(ctx):
    with ctx.cluster(1, "raw", 2 << 30) as c:
        c.start_all()
        with ctx.rank(c, threads=1) as rank:
            saved(rank)
            saved(rank)
            for percent in (1, 10, 50):
                stalls, copies = [], []
                for _ in range(ctx.sizes.pairs if percent == 1 else max(6, ctx.sizes.pairs // 2)):
                    rank.ask(f"touch {percent / 100}")
                    settle(c)
                    copies.append(rank.ask("copy best 1")["s"])
                    stalls.append(saved(rank)[0])
                ctx.report.add(f"stall_{percent}_changed_over_copy", "ratio", stats.ratios(stalls, copies), group=GROUP,
                               target=("<=", 0.10) if percent == 1 else None, note=f"{percent}% of pages changed since the save before, any place")


def run(ctx):
    idle(ctx)
    draining(ctx)
    changed(ctx)
    tail(ctx)
