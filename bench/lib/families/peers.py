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
MODES = {
    "async_default": "dcp.async_save", "async_private": "async, cached staging", "async_shared": "async, cached shared staging",
    "async_process": "async, a process", "dcp_save": "dcp.save", "torch_save": "torch.save", "safetensors": "safetensors",
}


class Collected:
    def __init__(self):
        self.stall = {m: [] for m in MODES}
        self.done = {m: [] for m in MODES}
        self.cpu = {m: 0.0 for m in MODES}
        self.ours, self.commit, self.copied, self.floor = [], [], [], []
        self.used = {"trainer": 0.0, "daemon": 0.0, "peer": 0.0}


def one_peer(torch, mode, into):
    before = tree_cpu_s(torch.pid)
    stall = torch.ask(f"save {mode}")["stall_s"]
    done = torch.ask("wait")["done_s"]
    if into is not None:
        into.stall[mode].append(stall)
        into.done[mode].append(done)
        into.cpu[mode] += tree_cpu_s(torch.pid) - before


def one_of_ours(c, rank, into):
    settle(c)
    daemons = {"daemon": [c.node.process.pid], "peer": [p.process.pid for p in c.peers]}
    before = {who: sum(map(cpu_s, pids)) for who, pids in daemons.items()}
    stall, commit, used = saved(rank)
    if into is not None:
        into.ours.append(stall)
        into.commit.append(commit)
        into.used["trainer"] += used
        for who, pids in daemons.items():
            into.used[who] += sum(map(cpu_s, pids)) - before[who]


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


def one_turn(ctx, c, rank, torch, mode, into):
    if mode == "ours":
        one_of_ours(c, rank, into)
    elif mode == "copy":
        s = rank.ask(f"copy best {ctx.threads}")["s"]
        if into is not None:
            into.floor.append(s)
    else:
        one_peer(torch, mode, into)


def collect(ctx):
    got = Collected()
    with ctx.cluster(1, None, 2 << 30) as c:
        c.start_all()
        with ctx.rank(c) as rank, ctx.torch() as torch:
            for i in range(ctx.sizes.peer_pairs + 1):
                into = got if i else None  # the first makes caches and files
                modes = list(MODES)
                turns = ["copy", *modes[:4], "ours", *modes[4:]]  # the copy is not beside ours: it would find caches warm
                for mode in turns[i % len(turns):] + turns[:i % len(turns)]:  # nobody is always the first
                    one_turn(ctx, c, rank, torch, mode, into)
                if into:
                    got.copied.append(cp(ctx))
            return got, rank.hello["bytes"], torch.hello["torch"]


def report(ctx, got, size, version):
    add = ctx.report.add
    middle = {m: stats.summary(v)["median"] for m, v in got.stall.items()}
    best = min(("async_private", "async_shared"), key=middle.get)
    add("stall_beside_peers", "s", got.ours, limit=stats.summary(got.floor)["median"], limit_name="copy in its turn", peers={MODES[m]: middle[m] for m in MODES}, group=GROUP,
        note=f"{size / MIB:.0f} MiB, {ctx.threads} threads each, torch {version}; peers' whole time where they do not return before")
    for name, mode, target in (("stall_over_dcp_async", "async_default", 0.5), ("stall_over_dcp_async_cached", best, 1.0),
                               ("stall_over_dcp_async_process", "async_process", None), ("stall_over_dcp_save", "dcp_save", None),
                               ("stall_over_torch_save", "torch_save", 0.10), ("stall_over_safetensors", "safetensors", None)):
        add(name, "ratio", stats.ratios(got.ours, got.stall[mode]), target=("<=", target) if target else None, group=GROUP,
            note=f"the better one: {MODES[best]}" if mode == best else None)
    done = {MODES[m]: stats.summary(v)["median"] for m, v in got.done.items()}
    done["cp of a file"] = stats.summary(got.copied)["median"]
    add("commit_beside_peers", "s", got.commit, peers=done, group=GROUP, note="until durable; one peer, codecs chosen by the node")
    gb = size * ctx.sizes.peer_pairs / GB
    for who, used in got.used.items():
        add(f"cpu_{who}_s_per_gb", "CPU s/GB", [used / gb], group=GROUP)
    total = sum(got.used.values()) / gb
    add("cpu_sum_s_per_gb", "CPU s/GB", [total], peers={MODES[m]: got.cpu[m] / gb for m in MODES}, group=GROUP)
    add("cpu_sum_over_dcp_async", "ratio", [total / (got.cpu["async_default"] / gb)], target=("<=", 1.0), group=GROUP,
        note="trainer, daemon and peer together")


def run(ctx):
    if ctx.venv is None:
        for name, target in (("stall_over_dcp_async", 0.5), ("stall_over_dcp_async_cached", 1.0), ("stall_over_torch_save", 0.10)):
            ctx.report.missing(name, "ratio", "there is no torch", target=("<=", target), group=GROUP)
        return
    try:
        report(ctx, *collect(ctx))
    finally:
        shutil.rmtree(ctx.scratch / "torch", ignore_errors=True)
