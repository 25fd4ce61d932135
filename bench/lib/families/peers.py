# SPDX-License-Identifier: Apache-2.0
"""What people use today, in turns with a save: the same tensors, the same disk, as many threads, everything synced."""
import os
import shutil
import subprocess
import time

import stats
from context import GB, MIB, saved, settle
from workers import cpu_s, tree_cpu_s

GROUP = "beside today's ways"
LOOPS = 1
MODES = {
    "async_default": "dcp.async_save", "async_private": "async, cached staging", "async_shared": "async, cached shared staging",
    "async_process": "async, a process", "dcp_save": "dcp.save", "torch_save": "torch.save", "safetensors": "safetensors",
}


# In every turn: what targets are about. The others are in every third.
JUDGED = ("async_default", "async_private", "async_shared", "torch_save")


class Collected:
    """By what was done, then by turn."""

    def __init__(self):
        self.stall, self.done, self.cpu = ({m: {} for m in (*MODES, "ours")} for _ in range(3))
        self.copied, self.floor = {}, {}
        self.used = {"trainer": 0.0, "daemon": 0.0, "peer": 0.0}

    def pairs(self, what, mode):
        """Ours over theirs, of the turns that have both."""
        ours, theirs = what["ours"], what[mode]
        return [ours[i] / theirs[i] for i in ours if i in theirs]


def one_peer(torch, mode, into, i):
    before = tree_cpu_s(torch.pid)
    stall = torch.ask(f"save {mode}")["stall_s"]
    done = torch.ask("wait")["done_s"]
    if into is not None:
        into.stall[mode][i] = stall
        into.done[mode][i] = done
        into.cpu[mode][i] = tree_cpu_s(torch.pid) - before


def one_of_ours(c, rank, into, i):
    settle(c)
    daemons = {"daemon": [c.node.process.pid], "peer": [p.process.pid for p in c.peers]}
    before = {who: sum(map(cpu_s, pids)) for who, pids in daemons.items()}
    stall, commit, trainer = saved(rank)
    if into is None:
        return
    used = {"trainer": trainer, **{who: sum(map(cpu_s, pids)) - before[who] for who, pids in daemons.items()}}
    into.stall["ours"][i], into.done["ours"][i], into.cpu["ours"][i] = stall, commit, sum(used.values())
    for who, seconds in used.items():
        into.used[who] += seconds


def cp(ctx):
    """cp of the state's file and a sync of the copy."""
    to = ctx.scratch / "copied"
    begin = time.monotonic()
    subprocess.run(["cp", "--reflink=never", str(ctx.state), str(to)], check=True, timeout=120)
    fd = os.open(to, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    took = time.monotonic() - begin
    to.unlink()
    return took


def one_turn(ctx, c, rank, torch, mode, into, i):
    if mode == "ours":
        one_of_ours(c, rank, into, i)
    elif mode == "copy":
        s = rank.ask(f"copy best {ctx.threads}")["s"]
        if into is not None:
            into.floor[i] = s
    else:
        one_peer(torch, mode, into, i)


def collect(ctx):
    got = Collected()
    with ctx.cluster(1, None, 2 << 30) as c:
        c.start_all()
        with ctx.rank(c) as rank, ctx.torch() as torch:
            for i, counts in enumerate(ctx.turns(warm=1)):
                into = got if counts else None  # the first makes caches and files
                modes = [m for m in MODES if m in JUDGED or i % 3 <= 1 - counts]
                turns = ["copy", *modes[:3], "ours", *modes[3:]]  # the copy is not beside ours: it would find caches warm
                for mode in turns[i % len(turns):] + turns[:i % len(turns)]:  # nobody is always the first
                    one_turn(ctx, c, rank, torch, mode, into, i)
                if into and i % 3 == 1:
                    got.copied[i] = cp(ctx)
            return got, rank.hello["bytes"], torch.hello["torch"]


def middle(by_turn):
    return stats.summary(list(by_turn.values()))["median"]


def report(ctx, got, size, version):
    add, gb = ctx.report.add, size / GB
    stalls = {m: middle(got.stall[m]) for m in MODES}
    best = min(("async_private", "async_shared"), key=stalls.get)
    add("stall_beside_peers", "s", list(got.stall["ours"].values()), limit=middle(got.floor), limit_name="copy in its turn", group=GROUP,
        peers={MODES[m]: stalls[m] for m in MODES},
        note=f"{size / MIB:.0f} MiB, {ctx.threads} threads each, torch {version}; peers' whole time where they do not return before")
    for name, mode, target in (("stall_over_dcp_async", "async_default", 0.5), ("stall_over_dcp_async_cached", best, 1.0),
                               ("stall_over_dcp_async_process", "async_process", None), ("stall_over_dcp_save", "dcp_save", None),
                               ("stall_over_torch_save", "torch_save", 0.10), ("stall_over_safetensors", "safetensors", None)):
        add(name, "ratio", got.pairs(got.stall, mode), target=("<=", target) if target else None, group=GROUP,
            note=f"the better one: {MODES[best]}" if mode == best else None)
    done = {MODES[m]: middle(got.done[m]) for m in MODES}
    add("commit_beside_peers", "s", list(got.done["ours"].values()), peers={**done, "cp of a file": middle(got.copied)}, group=GROUP,
        note="until durable; one peer, codecs chosen by the node")
    for who, used in got.used.items():
        add(f"cpu_{who}_s_per_gb", "CPU s/GB", [used / len(got.cpu["ours"]) / gb], group=GROUP)
    add("cpu_sum_s_per_gb", "CPU s/GB", [s / gb for s in got.cpu["ours"].values()], peers={MODES[m]: middle(got.cpu[m]) / gb for m in MODES}, group=GROUP,
        note="trainer, daemon and peer together")
    add("cpu_sum_over_dcp_async", "ratio", got.pairs(got.cpu, "async_default"), target=("<=", 1.0), group=GROUP)


def run(ctx):
    if ctx.venv is None:
        for name, target in (("stall_over_dcp_async", 0.5), ("stall_over_dcp_async_cached", 1.0), ("stall_over_torch_save", 0.10)):
            ctx.report.missing(name, "ratio", "there is no torch", target=("<=", target), group=GROUP)
        return
    try:
        report(ctx, *collect(ctx))
    finally:
        shutil.rmtree(ctx.scratch / "torch", ignore_errors=True)
