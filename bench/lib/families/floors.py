# SPDX-License-Identifier: Apache-2.0
"""The machine: what its memory, disk and loopback do alone, and what the stages of a save cost in cache."""
import disk
from context import GB, json_of

GROUP = "the machine"


def copies(ctx, n=9):
    with ctx.rank(bytes_=512 << 20) as rank:
        size = rank.hello["bytes"]
        for kind, threads, name in (("memcpy", 1, "memcpy"), ("pages", 1, "copy_pages"), ("lines", 1, "copy_lines"), ("best", 1, "copy"),
                                    ("best", ctx.threads, "copy_threads"), ("read", 1, "read_loop")):
            loop = rank.ask(f"copy {kind} {threads}")["loop"]
            values = [size / rank.ask(f"copy {kind} {threads}")["s"] / GB for _ in range(n)]
            note = f"the fastest loop here: {loop}; {threads} threads" if kind == "best" else None
            ctx.floors[name] = ctx.report.add(name, "GB/s", values, group=GROUP, note=note)["median"] * GB


def disks(ctx):
    """The first write lays the file out; the later ones are what recycled files are compared with."""
    where = ctx.scratch
    disk.measure(where, "write", ctx.sizes.disk_mib)
    for direction in ("write", "read"):
        runs = [disk.measure(where, direction, ctx.sizes.disk_mib) for _ in range(3)]
        row = ctx.report.add(f"disk_{direction}", "GB/s", [r[0] / GB for r in runs], group=GROUP, note="1 MiB direct, depth 8, into laid-out files"
                             if direction == "write" else None)
        ctx.floors[f"disk_{direction}"] = row["median"] * GB
        ctx.floors[f"disk_{direction}_cpu"] = sorted(r[1] for r in runs)[1]
    disk.remove(where)


def stages(ctx):
    runs = [disk.loopback(256 if ctx.quick else 1024) for _ in range(3)]
    ctx.report.add("loopback", "GB/s", [r[0] / GB for r in runs], group=GROUP, note="one TCP connection, both ends on this machine")
    ctx.floors["wire"] = sorted(r[0] for r in runs)[1]
    ctx.floors["wire_cpu"] = sorted(r[1] for r in runs)[1]
    runs = [json_of([ctx.program("bench-stages")], 60) for _ in range(3)]
    for name in ("hash128", "hash64", "parity42"):
        row = ctx.report.add(f"{name}_in_cache", "GB/s", [r[name] / GB for r in runs], group=GROUP)
        ctx.floors[name] = row["median"] * GB


def run(ctx):
    copies(ctx)
    disks(ctx)
    stages(ctx)
