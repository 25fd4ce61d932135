# SPDX-License-Identifier: Apache-2.0
"""How fast state becomes durable, beside what this machine's processors and disk allow: with one copy and with 4+2, raw and packed.

The limit is a pipeline in which all stages overlap perfectly and nothing is done twice. For each byte of state, r of which are left by the codec
and f = r (k+m)/k of which are stored:

    cpu  = 1/codec (raw: 1/read loop) + 1/hash128 + r/parity (with parity) + f (2/hash64 + wire + disk)      CPU seconds
    time = max(cpu / processors, f / disk)                                                seconds

Every cost is measured in the same run: codec, checksums and parity in cache, wire and disk as CPU seconds a byte of their own."""
import disk
import stats
from context import GB, json_of, saved, settle

GROUP = "durable"
SECTIONS = {"model": 2 / 14, "master": 4 / 14, "exp_avg": 4 / 14, "exp_avg_sq": 4 / 14}


def codec_cost(ctx, codec):
    """(size, CPU seconds a byte of state), over the four kinds by their share; what a codec does not shrink is stored raw."""
    if codec == "raw":
        return 1.0, 1 / ctx.floors["read_loop"]  # a codec reads the state; raw parts are read by the first checksum
    size = cost = 0.0
    for kind, share in SECTIONS.items():
        size += share * min(1.0, ctx.floors[f"{codec}_ratio_{kind}"])
        cost += share / ctx.floors[f"{codec}_encode_{kind}"]
    return size, cost


def perfect(ctx, codec, k, m, disk_write, processors):
    f = ctx.floors
    size, cost = codec_cost(ctx, codec)
    stored = size * (k + m) / k
    cpu = cost + 1 / f["hash128"] + (size / f["parity42"] if m else 0) + stored * (2 / f["hash64"] + f["wire_cpu"] + f["disk_write_cpu"])
    return 1 / max(cpu / processors, stored / disk_write), "disk" if stored / disk_write >= cpu / processors else "processors"


def one(ctx, codec, peers, k, m):
    """Saves and the disk's speed take turns: the limit is of the same minute."""
    rates, limits, bound = [], [], ""
    with ctx.cluster(peers, codec, 2 << 30) as c:
        c.start_all()
        disk.measure(ctx.scratch, "write", ctx.sizes.probe_mib)
        with ctx.rank(c) as rank:
            size = rank.hello["bytes"]
            for i in range(ctx.sizes.durable + 2):
                speed = disk.measure(ctx.scratch, "write", ctx.sizes.probe_mib)[0]
                commit = saved(rank)[1]
                settle(c)
                if i >= 2:  # the first two lay files out
                    limit, bound = perfect(ctx, codec, k, m, speed, ctx.report.machine["processors"])
                    rates.append(size / commit)
                    limits.append(limit)
        disk.remove(ctx.scratch)
    return rates, limits, bound


def probe(ctx):
    """Wire and disk together without checks, by a program of its own."""
    program = ctx.program("bench-probe-durable")
    if not program:
        return None
    try:
        r = json_of([program, "--directory", ctx.scratch, "--json"], 120)
        return r["bytes_per_s"]
    except (RuntimeError, ValueError, KeyError) as e:
        ctx.report.say(f"  bench-probe-durable: {e}")
        return None


def run(ctx):
    limit_of_probe = probe(ctx)
    for codec, peers, k, m, suffix, target in (("raw", 1, 1, 0, "", 0.85), ("raw", 6, 4, 2, "_4+2", None),
                                               ("float", 1, 1, 0, "", 0.75), ("float", 6, 4, 2, "_4+2", 0.75)):
        if codec != "raw" and f"{codec}_ratio_model" not in ctx.floors:
            ctx.report.missing(f"durable_{codec}_over_limit{suffix}", "ratio", "the codec was not measured", target=(">=", target), group=GROUP)
            continue
        rates, limits, bound = one(ctx, codec, peers, k, m)
        name, note = "perfect pipeline", f"limited by {bound}"
        if codec == "raw" and m == 0 and limit_of_probe:
            limits, name, note = [limit_of_probe] * len(rates), "probe", "wire and direct disk together, no checks"
        elif codec == "raw" and m == 0:
            note += "; the probe of wire and disk together is not built, the limit is computed"
        ctx.report.add(f"durable_{codec}{suffix}", "GB/s", [r / GB for r in rates], limit=stats.summary(limits)["median"] / GB, limit_name=name,
                       group=GROUP, note=note)
        ctx.report.add(f"durable_{codec}_over_limit{suffix}", "ratio", stats.ratios(rates, limits), group=GROUP,
                       target=(">=", target) if target else None)
