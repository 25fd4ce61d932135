# SPDX-License-Identifier: Apache-2.0
"""Restores: from the peers' disks with cold caches beside the disk read alone, and from the arena beside a copy."""
import disk
import stats
from context import GB, saved, settle

GROUP = "restore"
LOOPS = 4


def stored(c):
    """Bytes of the newest checkpoint's streams on all peers."""
    return sum(f.stat().st_blocks * 512 for p in c.peers for f in p.stream_files())


def restored(worker):
    r = worker.ask("restore")
    if not r["equal"]:
        raise RuntimeError("what was restored is not what was saved")
    return r["restore_s"]


def cold(ctx, codec):
    """The trainer is gone and so is the node's arena: everything comes from one peer's disk."""
    ours, alone = [], []
    with ctx.cluster(1, codec, 2 << 30) as c:
        c.start_all()
        with ctx.rank(c) as rank:
            size = rank.hello["bytes"]
            saved(rank)
            settle(c)
        on_disk = stored(c)
        c.node.kill()
        c.node.start()
        c.wait_peers_up()
        disk.measure(ctx.scratch, "write", ctx.sizes.disk_mib)
        with ctx.rank(c, observer=True) as reader:
            for _ in ctx.turns():
                dropped = ctx.drop_caches()
                alone.append(disk.measure(ctx.scratch, "read", ctx.sizes.disk_mib)[0])
                ours.append(restored(reader))
        disk.remove(ctx.scratch)
    return size, on_disk, ours, alone, dropped


def from_disk(ctx):
    for codec in ("raw", "float"):
        size, on_disk, ours, alone, dropped = cold(ctx, codec)
        suffix = "" if codec == "raw" else f"_{codec}"
        limit = stats.summary(alone)["median"] / GB
        note = None if dropped else "caches could not be dropped; peers read past them anyway"
        ctx.report.add(f"restore{suffix}", "GB/s", [size / s / GB for s in ours], limit=limit, limit_name="disk read", group=GROUP,
                       note="; ".join(filter(None, [f"of state, of which {on_disk / size:.2f} is stored", note])))
        ctx.report.add(f"restore_over_disk{suffix}", "ratio", stats.ratios([on_disk / s for s in ours], alone), group=GROUP,
                       target=(">=", 0.85) if codec == "raw" else None, note="stored bytes")


def hot(ctx, threads, suffix):
    """Into the rank that saved, and into another process of the node; the limit is the stream loop from shared memory to the same tensors."""
    copies, ours, elsewhere = [], [], []
    with ctx.cluster(1, "raw", 2 << 30) as c:
        c.start_all()
        with ctx.rank(c, threads=threads) as rank, ctx.rank(c, threads=threads, observer=True) as reader:
            saved(rank)
            settle(c)
            restored(rank)
            restored(reader)
            for _ in ctx.turns():
                copies.append(rank.ask(f"back {threads}")["s"])
                ours.append(restored(rank))
                elsewhere.append(restored(reader))
            size = rank.hello["bytes"]
    ctx.report.add(f"hot_restore{suffix}", "GB/s", [size / s / GB for s in ours], limit=size / stats.summary(copies)["median"] / GB,
                   limit_name="copy", group=GROUP, note=f"the rank's own arena is still there; {threads} threads")
    ctx.report.add(f"hot_restore_over_copy{suffix}", "ratio", stats.ratios(copies, ours), target=(">=", 0.9), group=GROUP)
    ctx.report.add(f"hot_restore_elsewhere{suffix}", "GB/s", [size / s / GB for s in elsewhere], group=GROUP,
                   note="another process of the node, from the arena")


def run(ctx):
    from_disk(ctx)
    hot(ctx, 1, "")
    if ctx.threads > 1:
        hot(ctx, ctx.threads, "_threads")
