# SPDX-License-Identifier: Apache-2.0
"""How fast state becomes durable, beside what this machine's processors and disk allow: with one copy and with 4+2, raw and packed.

The limit is a pipeline in which all stages overlap perfectly and nothing is done twice. For each byte of state, r of which are left by the codec
and f = r (k+m)/k of which are stored:

    cpu  = 1/codec (raw: 1/read loop) + 1/hash128 + r/parity (with parity) + f (2/hash64 + wire + disk)      CPU seconds
    time = max(cpu / processors, f / disk)                                                seconds

Every cost is measured in the same run: codec, checksums and parity in cache, wire and disk as CPU seconds a byte of their own. For raw state
bench-probe-durable does wire and disk together instead, without checks and with nobody else at work."""
import disk
import stats
from context import GB, MIB, saved, settle
from workers import Worker

GROUP = "durable"


def loops(ctx):
    return 4 if ctx.quick else 5


LOOPS = loops
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


class Limit:
    """Of one kind of save, measured between the saves: the probe of wire and direct disk together where it is built and nothing is encoded, else
    the formula with the disk's speed of the moment."""

    def __init__(self, ctx, codec, k, m, size, files):
        self.ctx, self.codec, self.k, self.m, self.files = ctx, codec, k, m, files
        self.best, self.new, self.bound, self.probe = [], [], "", None
        program = ctx.program("bench-probe-durable") if codec == "raw" else None
        if program:
            self.probe = Worker([program, "--serve", "--directory", ctx.scratch, "--mib", min(size // MIB, ctx.sizes.probe_mib), "--runs", 1,
                                 "--receivers", k + m, "--stored", (k + m) / k, "--json",
                                 *(["--files", files] if files else [])])

    def measure(self, counts):
        """Into `best`, and `new` for files that are not there yet."""
        if self.probe:
            r = self.probe.ask("run")
            best, new = r["bytes_per_s"], 0 if self.files else r["new"]["bytes_per_s"][0]
        else:
            speed = disk.measure(self.ctx.scratch, "write", self.ctx.sizes.probe_mib)[0]
            best, self.bound = perfect(self.ctx, self.codec, self.k, self.m, speed, self.ctx.report.machine["processors"])
            new = 0
        if counts:
            self.best.append(best)
            self.new += [new] if new else []

    @property
    def name(self):
        return "probe" if self.probe else "perfect pipeline"

    @property
    def note(self):
        if self.probe:
            return "the probe: wire and direct disk together, no checks, trainer idle; its files are " + ("new" if self.files else "written over")
        return f"limited by {self.bound}" + ("; the probe of wire and disk together is not built" if self.codec == "raw" else "")

    def end(self):
        if self.probe:
            self.probe.end()
        disk.remove(self.ctx.scratch)


def one(ctx, codec, k, m, files=None, **options):
    """Saves and their limit take turns: it is of the same seconds. The first saves lay files out; later ones write over those that retention freed."""
    rates = []
    with ctx.cluster(k + m, codec, 2 << 30, **options) as c:
        c.start_all()
        with ctx.rank(c) as rank:
            size = rank.hello["bytes"]
            limit = Limit(ctx, codec, k, m, size, files)
            try:
                for counts in ctx.turns(warm=ctx.sizes.warm_stores):
                    limit.measure(counts)
                    commit = saved(rank)[1]
                    settle(c)
                    if counts:
                        rates.append(size / commit)
            finally:
                limit.end()
    return rates, limit


def rows(ctx, name, rates, limit, target):
    add = ctx.report.add
    add(name, "GB/s", [r / GB for r in rates], limit=stats.summary(limit.best)["median"] / GB, limit_name=limit.name, group=GROUP, note=limit.note)
    base, _, suffix = name.partition("_4+2")
    suffix = "_4+2" if name.endswith("_4+2") else ""
    add(f"{base}_over_limit{suffix}", "ratio", stats.ratios(rates, limit.best), group=GROUP, target=(">=", target) if target else None)
    if limit.new:
        add(f"{base}_over_limit_of_new_files{suffix}", "ratio", stats.ratios(rates, limit.new), group=GROUP, note="the probe, too, makes a file for each save")


def run(ctx):
    for name, codec, k, m, target in (("durable_raw", "raw", 1, 0, 0.85), ("durable_raw_4+2", "raw", 4, 2, None),
                                      ("durable_float", "float", 1, 0, 0.75), ("durable_float_4+2", "float", 4, 2, 0.75)):
        if codec != "raw" and f"{codec}_ratio_model" not in ctx.floors:
            ctx.report.missing(name.replace(codec, f"{codec}_over_limit"), "ratio", "the codec was not measured", target=(">=", target), group=GROUP)
            continue
        rows(ctx, name, *one(ctx, codec, k, m), target)
    if ctx.quick:
        ctx.report.missing("durable_raw_new_files", "GB/s", "a quick run leaves it out", group=GROUP)
        return
    rows(ctx, "durable_raw_new_files", *one(ctx, "raw", 1, 0, files="new", peer__recycle_mib=0), None)
