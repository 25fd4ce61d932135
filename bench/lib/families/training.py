# SPDX-License-Identifier: Apache-2.0
"""Steps of a training loop that takes every processor, with a save always under way and without (bench/neighbour)."""
import json
import subprocess
import sys

from context import GB, MIB, ROOT

GROUP = "training beside it"
MODES = ("raw", "float", "paced")


def measured(ctx):
    out = ctx.scratch / "neighbour.json"
    where = ctx.scratch / "neighbour"
    command = [sys.executable, ROOT / "bench" / "neighbour", "--build", ctx.build, "--mib", ctx.sizes.neighbour_mib, "--modes", ",".join(MODES),
               "--directory", where, "--json", out]
    command += ["--steps", 240, "--alone", 120, "--every", 60] if ctx.quick else ["--steps", 1000, "--alone", 500]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=900)
    if not out.exists():
        raise RuntimeError(f"bench/neighbour ended with {done.returncode}: {done.stderr[-600:]}")
    return json.loads(out.read_text())


def run(ctx):
    try:
        r = measured(ctx)
    except (RuntimeError, subprocess.TimeoutExpired) as e:
        for mode in MODES:
            ctx.report.missing(f"step_p99_over_alone_{mode}", "ratio", str(e)[:200], target=("<=", 1.15) if mode == "paced" else None, group=GROUP)
        return
    for m in r["modes"]:
        mode = m["mode"]
        for what in ("mean", "p50", "p99"):
            ctx.report.add(f"step_{what}_over_alone_{mode}", "ratio", [m["ratio"][what]], group=GROUP,
                           target=("<=", 1.15) if (what, mode) == ("p99", "paced") else None,
                           note=f"{m['step']['n']} steps, {m['saves']} saves of {r['mib']} MiB, {m['late']} late" if what == "p99" else None)
        ctx.report.add(f"cost_per_save_{mode}", "s", [m["cost_per_save_s"]], group=GROUP, note="(time with saves - time of the steps alone) / saves")
        ctx.report.add(f"busy_durable_{mode}", "GB/s", [r["mib"] * MIB / m["commit"]["p50"] / GB], group=GROUP,
                       note="state committed while training takes all processors")
        for who, used in m["cpu_s_per_gb"].items():
            ctx.report.add(f"busy_cpu_{who}_s_per_gb_{mode}", "CPU s/GB", [used], group=GROUP)
    for mode in MODES:
        if not ctx.report.has(f"step_p99_over_alone_{mode}"):
            ctx.report.missing(f"step_p99_over_alone_{mode}", "ratio", "bench/neighbour skipped it", group=GROUP)
    ctx.report.missing("cost_per_save_tracked", "s", "bench/neighbour has no mode that tracks changed pages", group=GROUP)
