# SPDX-License-Identifier: Apache-2.0
"""From a small state to a large one, from one rank to several: what another byte costs, what a save costs at all, what the daemon needs."""
import statistics

import stats
from context import GB, MIB, saved, settle
from workers import resident_beyond_arena

GROUP = "growth"


def sizes(ctx):
    """[(bytes, median commit)], the daemon's memory after the smallest and the largest."""
    points, memory, rates = [], [], {}
    for mib in ctx.sizes.growth:
        with ctx.cluster(1, "raw", mib * MIB, retention__rule="last=1") as c:
            c.start_all()
            with ctx.rank(c, bytes_=mib * MIB, threads=1) as rank:
                commits = [saved(rank)[1] for _ in range(ctx.sizes.growth_saves + 1)][1:]
                settle(c)
                memory.append(resident_beyond_arena(c.node.process.pid))
                points.append((rank.hello["bytes"], statistics.median(commits)))
                rates[mib] = [rank.hello["bytes"] / s / GB for s in commits]
    for mib, values in rates.items():
        ctx.report.add(f"durable_{mib}_mib", "GB/s", values, group=GROUP)
    fixed, slope = stats.line(*zip(*points))
    ctx.report.add("save_fixed_cost", "s", [fixed], group=GROUP, note="commit time at no bytes, by least squares over the sizes")
    ctx.report.add("marginal_throughput", "GB/s", [1 / slope / GB], group=GROUP)
    pieces = [(b[0] - a[0]) / (b[1] - a[1]) for a, b in zip(points, points[1:]) if b[1] > a[1]]
    if len(pieces) > 1:
        ctx.report.add("marginal_throughput_last_over_first", "ratio", [pieces[-1] / pieces[0]], target=(">=", 0.85), group=GROUP,
                       note=f"between the two largest states over between the two smallest, {ctx.sizes.growth[0]} to {ctx.sizes.growth[-1]} MiB")
    ctx.report.add("daemon_memory", "bytes", memory, group=GROUP, note="resident beyond the arena, at each size")
    ctx.report.add("daemon_memory_largest_over_smallest", "ratio", [memory[-1] / memory[0]], group=GROUP)


def ranks_rate(ctx, n):
    """The state is split among the ranks: all begin, then all wait."""
    share = ctx.sizes.rank_mib * MIB
    with ctx.cluster(1, "raw", share, arenas=n) as c:
        c.start_all()
        workers = []
        try:
            for r in range(n):
                workers.append(ctx.rank(c, bytes_=share, threads=1, job=f"ranks{n}", rank=r, world=n, start_id="first"))
            size, rates = sum(w.hello["bytes"] for w in workers), []
            for _ in range(ctx.sizes.growth_saves + 1):
                for w in workers:
                    w.tell("save")
                for w in workers:
                    w.answer()
                for w in workers:
                    w.tell("commit")
                rates.append(size / max(w.answer()["commit_s"][-1] for w in workers) / GB)
                settle(c)
            return rates[1:]
        finally:
            for w in workers:
                w.end()


def ranks(ctx):
    medians = []
    for n in ctx.sizes.ranks:
        rates = ranks_rate(ctx, n)
        medians.append(statistics.median(rates))
        ctx.report.add(f"durable_{n}_ranks", "GB/s", rates, group=GROUP, note=f"{ctx.sizes.rank_mib} MiB each")
    ctx.report.add("throughput_most_ranks_over_one", "ratio", [medians[-1] / medians[0]], target=(">=", 0.85), group=GROUP,
                   note=f"{ctx.sizes.ranks[-1]} ranks")


def run(ctx):
    sizes(ctx)
    ranks(ctx)
