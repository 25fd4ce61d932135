# SPDX-License-Identifier: Apache-2.0
"""From a small state to a large one, from one rank to several: what another byte costs, what a save costs at all, what the daemon needs.

All sizes, and all numbers of ranks, are jobs of the same daemons and save in turns: what is compared is seconds apart."""
import statistics

import stats
from context import GB, MIB, saved, settle
from workers import resident_beyond_arena

GROUP = "growth"
LOOPS = 2


def sizes(ctx):
    """A rank of each size: {mib: [commits]}, {mib: [stalls]}, {mib: bytes}."""
    mibs, ranks = ctx.sizes.growth, {}
    commits, stalls = {m: [] for m in mibs}, {m: [] for m in mibs}
    with ctx.cluster(1, "raw", max(mibs) * MIB, arenas=2, retention__rule="last=1") as c:
        c.start_all()
        try:
            for mib in mibs:
                ranks[mib] = ctx.rank(c, bytes_=mib * MIB, threads=1, job=f"size{mib}")
            for counts in ctx.turns(warm=1):
                for mib, rank in ranks.items():
                    stall, commit, _ = saved(rank)
                    settle(c)
                    if counts:
                        stalls[mib].append(stall)
                        commits[mib].append(commit)
            return commits, stalls, {m: r.hello["bytes"] for m, r in ranks.items()}
        finally:
            for rank in ranks.values():
                rank.end()


def marginal(times, size, a, b):
    """Bytes a second between two sizes, turn by turn."""
    return [(size[b] - size[a]) / (y - x) for x, y in zip(times[a], times[b]) if y > x]


def report_sizes(ctx, commits, stalls, size):
    add = ctx.report.add
    first, middle, last = ctx.sizes.growth[0], ctx.sizes.growth[-2], ctx.sizes.growth[-1]
    for mib, values in commits.items():
        add(f"durable_{mib}_mib", "GB/s", [size[mib] / s / GB for s in values], group=GROUP)
    for name, times in (("save", commits), ("stall", stalls)):
        lines = [stats.line([size[m] for m in times], each) for each in zip(*times.values())]
        add(f"{name}_fixed_cost", "s", [fixed for fixed, _ in lines], group=GROUP,
            note=f"{'commit' if name == 'save' else 'stall'} at no bytes: the line through the sizes, turn by turn, by least squares of relative errors")
    add("marginal_throughput", "GB/s", [v / GB for v in marginal(commits, size, first, last)], group=GROUP, note=f"{first} to {last} MiB")
    low, high = marginal(commits, size, first, middle), marginal(commits, size, middle, last)
    add("marginal_throughput_last_over_first", "ratio", stats.ratios(high, low), target=(">=", 0.85), group=GROUP,
        note=f"from {middle} to {last} MiB over from {first} to {middle} MiB")


def memory(ctx):
    """Of daemons of their own, at the smallest and the largest state: what one needed at its most is not given back."""
    found = []
    for mib in (ctx.sizes.growth[0], ctx.sizes.growth[-1]):
        with ctx.cluster(1, "raw", mib * MIB, retention__rule="last=1") as c:
            c.start_all()
            with ctx.rank(c, bytes_=mib * MIB, threads=1) as rank:
                for _ in range(3):
                    saved(rank)
                    settle(c)
                found.append(resident_beyond_arena(c.node.process.pid))
    ctx.report.add("daemon_memory", "bytes", found, group=GROUP,
                   note=f"resident beyond the arena, after three saves of {ctx.sizes.growth[0]} and of {ctx.sizes.growth[-1]} MiB")
    ctx.report.add("daemon_memory_largest_over_smallest", "ratio", [found[-1] / found[0]], target=("<=", 1.15), group=GROUP)


def all_save(workers):
    """All begin, then all wait: bytes and the time to the last commit."""
    for w in workers:
        w.tell("save")
    for w in workers:
        w.answer()
    for w in workers:
        w.tell("commit")
    return sum(w.hello["bytes"] for w in workers), max(w.answer()["commit_s"][-1] for w in workers)


def ranks(ctx):
    share, groups = ctx.sizes.rank_mib * MIB, {}
    rates = {n: [] for n in ctx.sizes.ranks}
    with ctx.cluster(1, "raw", share, arenas=sum(ctx.sizes.ranks)) as c:
        c.start_all()
        try:
            for n in ctx.sizes.ranks:
                groups[n] = []
                for r in range(n):
                    groups[n].append(ctx.rank(c, bytes_=share, threads=1, job=f"ranks{n}", rank=r, world=n, start_id="first"))
            for counts in ctx.turns(warm=1):
                for n, workers in groups.items():
                    size, took = all_save(workers)
                    settle(c)
                    if counts:
                        rates[n].append(size / took / GB)
        finally:
            for w in sum(groups.values(), []):
                w.end()
    for n, values in rates.items():
        ctx.report.add(f"durable_{n}_ranks", "GB/s", values, group=GROUP, note=f"{ctx.sizes.rank_mib} MiB each")
    least, most = ctx.sizes.ranks[0], ctx.sizes.ranks[-1]
    ctx.report.add("throughput_most_ranks_over_one", "ratio", stats.ratios(rates[most], rates[least]), target=(">=", 0.85), group=GROUP,
                   note=f"{most} ranks over {least}, median of the rates {statistics.median(rates[least]):.2f} GB/s with {least}")


def run(ctx):
    report_sizes(ctx, *sizes(ctx))
    ranks(ctx)
    memory(ctx)
