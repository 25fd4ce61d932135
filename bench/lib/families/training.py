# SPDX-License-Identifier: Apache-2.0
"""Steps of a training loop that takes every processor, with a save always under way and without, in blocks that take turns (bench/neighbour)."""
import json
import math
import subprocess
import sys

from context import GB, MIB, ROOT

GROUP = "training beside it"
LOOPS = 1
MODES = ("raw", "float", "paced", "tracked")
STEP_S = 0.022
PACED_LONGER = 2.5


def measured(ctx, mode, seconds, work):
    """As many cycles as there is time for, of blocks with two saves and blocks without. A paced save takes longer, by its nature: as many steps in fewer,
    longer blocks."""
    longer = PACED_LONGER if mode == "paced" else 1
    every, most = int(ctx.sizes.every * longer), math.ceil(ctx.sizes.cycles / longer)
    out, block_s = ctx.scratch / "neighbour.json", 2 * every * STEP_S
    cycles = max(min(6, most), min(most, int((seconds - 5) / (2 * block_s))))
    command = [sys.executable, ROOT / "bench" / "neighbour", "--build", ctx.build, "--mib", ctx.sizes.neighbour_mib, "--modes", mode,
               "--directory", ctx.scratch / "neighbour", "--json", out, "--cycles", cycles, "--every", every,
               *(["--work", work] if work else [])]
    out.unlink(missing_ok=True)
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=60 + 6 * cycles * block_s)
    if not out.exists():
        raise RuntimeError(f"bench/neighbour ended with {done.returncode}: {done.stderr[-600:]}")
    r = json.loads(out.read_text())
    if not r["modes"]:
        raise RuntimeError(f"bench/neighbour skipped it: {done.stderr[-200:].strip()}")
    return r["modes"][0], r["work"]


def report(ctx, mode, m):
    add, mib = ctx.report.add, ctx.sizes.neighbour_mib
    what = f"{m['step']['n']} steps with saves, {m['saves']} saves of {mib} MiB, {m['late']} late"
    frozen = "; a twentieth of the state changes, the rest is frozen" if mode == "tracked" else ""
    add(f"step_mean_over_alone_{mode}", "ratio", m["mean_ratios"], group=GROUP, note=f"a block with two saves over the two blocks around it{frozen}")
    add(f"step_p50_over_alone_{mode}", "ratio", [m["ratio"]["p50"]], group=GROUP)
    add(f"step_p99_over_alone_{mode}", "ratio", [m["ratio"]["p99"]], group=GROUP, target=("<=", 1.15) if mode == "paced" else None,
        note=f"{what}; p99 alone is {m['alone']['p99'] / m['alone']['p50']:.2f} of p50")
    add(f"cost_per_save_{mode}", "s", m["costs_s"], group=GROUP,
        note="(time of a block with saves - time of as many steps alone) / saves" + ("; faults of tracking included" if mode == "tracked" else ""))
    add(f"busy_durable_{mode}", "GB/s", [mib * MIB / m["commit"]["p50"] / GB], group=GROUP, note="state committed while training takes all processors")
    for who, used in m["cpu_s_per_gb"].items():
        add(f"busy_cpu_{who}_s_per_gb_{mode}", "CPU s/GB", [used], group=GROUP)


def run(ctx):
    work = None  # of a step: found out once, the same for all modes
    for i, mode in enumerate(MODES):
        try:
            if mode == "tracked" and not ctx.tracks:
                raise RuntimeError("this build tracks no pages")
            m, work = measured(ctx, mode, ctx.budget.left_s() / (len(MODES) - i), work)
            report(ctx, mode, m)
        except (RuntimeError, subprocess.TimeoutExpired) as e:
            for name, unit, target in ((f"step_p99_over_alone_{mode}", "ratio", ("<=", 1.15) if mode == "paced" else None), (f"cost_per_save_{mode}", "s", None)):
                ctx.report.missing(name, unit, str(e)[:200].replace("\n", " "), target=target, group=GROUP)
