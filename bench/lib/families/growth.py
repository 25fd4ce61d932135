# SPDX-License-Identifier: Apache-2.0
"""From a small state to a large one, from one rank to several: what another byte costs, what a save costs at all, what the daemon needs.

Each size, and each number of ranks, has daemons of its own, whose peers write over files of its own size; they save in turns, and those whose turn
it is not are idle. So what is compared is seconds apart."""
import contextlib
import statistics

import disk
import stats
from context import GB, MIB, saved, settle
from workers import resident_beyond_arena

GROUP = "growth"
LOOPS = 2
DISK_TURNS = 5  # that the disk alone takes part in


def sizes(ctx):
    """A rank of each size: {mib: [commits]}, {mib: [stalls]}, {mib: bytes}, {mib: the daemon's memory}, {mib: [seconds of the disk alone]}."""
    mibs, clusters, ranks = ctx.sizes.growth, {}, {}
    commits, stalls, alone = ({m: [] for m in mibs} for _ in range(3))
    with contextlib.ExitStack() as held:
        for mib in mibs:
            clusters[mib] = held.enter_context(ctx.cluster(1, "raw", mib * MIB, retention__rule="last=1"))
            clusters[mib].start_all()
            ranks[mib] = held.enter_context(ctx.rank(clusters[mib], bytes_=mib * MIB, threads=1))
        for i, counts in enumerate(ctx.turns(warm=3)):
            for mib, rank in ranks.items():
                if i <= DISK_TURNS:
                    speed = disk.measure(ctx.scratch, "write", mib)[0]
                    alone[mib] += [mib * MIB / speed] if i else []  # the first lays the file out
                stall, commit, _ = saved(rank)
                settle(clusters[mib])
                if counts:
                    stalls[mib].append(stall)
                    commits[mib].append(commit)
        memory = {mib: resident_beyond_arena(c.node.process.pid) for mib, c in clusters.items()}
        disk.remove(ctx.scratch)
        return commits, stalls, {m: r.hello["bytes"] for m, r in ranks.items()}, memory, alone


def marginal(times, size, a, b):
    """Bytes a second between two sizes, turn by turn."""
    return [(size[b] - size[a]) / (y - x) for x, y in zip(times[a], times[b]) if y > x]


def report_sizes(ctx, commits, stalls, size, memory, alone):
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
    bytes_ = {m: m * MIB for m in alone}
    disks = stats.ratios(marginal(alone, bytes_, middle, last), marginal(alone, bytes_, first, middle))
    add("marginal_throughput_last_over_first", "ratio", stats.ratios(high, low), target=(">=", 0.85), group=GROUP,
        limit=statistics.median(disks) if disks else None, limit_name="the same of the disk alone",
        note=f"from {middle} to {last} MiB over from {first} to {middle} MiB")
    add("daemon_memory", "bytes", list(memory.values()), group=GROUP, note=f"resident beyond the arena, after saves of {', '.join(map(str, memory))} MiB")
    add("daemon_memory_largest_over_smallest", "ratio", [memory[last] / memory[first]], target=("<=", 1.15), group=GROUP)


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
    with contextlib.ExitStack() as held:
        for n in ctx.sizes.ranks:
            c = held.enter_context(ctx.cluster(1, "raw", share, arenas=n))
            c.start_all()
            groups[n] = c, [held.enter_context(ctx.rank(c, bytes_=share, threads=1, job=f"ranks{n}", rank=r, world=n, start_id="first"))
                            for r in range(n)]
        for counts in ctx.turns(warm=3):
            for n, (c, workers) in groups.items():
                size, took = all_save(workers)
                settle(c)
                if counts:
                    rates[n].append(size / took / GB)
    for n, values in rates.items():
        ctx.report.add(f"durable_{n}_ranks", "GB/s", values, group=GROUP, note=f"{ctx.sizes.rank_mib} MiB each")
    least, most = ctx.sizes.ranks[0], ctx.sizes.ranks[-1]
    ctx.report.add("throughput_most_ranks_over_one", "ratio", stats.ratios(rates[most], rates[least]), target=(">=", 0.85), group=GROUP,
                   note=f"{most} ranks over {least}, median of the rates {statistics.median(rates[least]):.2f} GB/s with {least}")


def run(ctx):
    report_sizes(ctx, *sizes(ctx))
    ranks(ctx)
