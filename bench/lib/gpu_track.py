# SPDX-License-Identifier: Apache-2.0
"""Half of the state is frozen: with CAIRN_TRACK it is read and not copied. What checksums of the source cost, and what
packing on the device (CAIRN_PACK) gains."""
from gpu_cairn import Saver
from gpu_state import make, size

GROUP = "unchanged parts, checksums, packing"


def frozen_half(w, state):
    saver = Saver(w, state, track=True)
    saver.copied()
    saver.committed()
    changing = list(state.values())[: len(state) // 2]
    changed = sum(t.numel() * t.element_size() for t in changing)
    seconds, shares, skipped = [], [], 0
    for _ in w.turns(3):
        for t in changing:
            t.mul_(1.5)
        seconds.append(saver.copied()[0])
        info = saver.info
        skipped = info["unchanged_bytes"]
        copied = info["device_bytes"] - skipped if info["device_bytes"] else info["copied_bytes"]
        shares.append(copied / changed)
        saver.committed()
    saver.close()
    w.add("frozen_half_copied_over_changed", "ratio", shares, target=("<=", 1.02), group=GROUP,
          note=f"{size(state) / 2**30:.2f} GiB, {skipped / 2**20:.0f} MiB of it not copied; tracking: {info['tracking']}")
    return seconds


def plain(w, state, **options):
    saver = Saver(w, state, **options)
    saver.copied()
    saver.committed()
    seconds = []
    for _ in w.turns(3):
        seconds.append(saver.copied()[0])
        saver.committed()
    saver.close()
    return seconds


def packed(w, state):
    """A session that packs tries both ways in turns until it knows them: the times of each, and what was packed."""
    saver = Saver(w, state, pack=True)
    ways, packed_bytes = {False: [], True: []}, 0
    for _ in range(6):
        seconds = saver.copied()[0]
        now = saver.info["packed_bytes"]
        packed_bytes = max(packed_bytes, now)
        ways[now > 0].append(seconds)
        saver.committed()
    saver.close()
    return ways, packed_bytes


def add_packed(w, state):
    ways, packed_bytes = packed(w, state)
    if not ways[True] or not ways[False]:
        return  # no device, or no kernels: frozen_half's note says what is tracked, the plugin's family why
    alone = min(ways[False])
    w.add("packed_copy_over_plain", "ratio", [s / alone for s in ways[True]], group=GROUP,
          note=f"time of the copy of {size(state) / 2**30:.2f} GiB, {packed_bytes / 2**20:.0f} MiB of it packed on the device, over the fastest plain one")


def run_track(w):
    state, job = make(w, w.bytes, w.tensor_bytes), w.job
    half = frozen_half(w, state)
    w.job = f"{job}-plain"
    alone = plain(w, state)
    w.add("frozen_half_over_full", "ratio", [a / b for a, b in zip(half, alone)], group=GROUP, note="time of the copy")
    w.job = f"{job}-sums"
    summed = plain(w, state, source_sums=True)
    w.add("source_sums_over_plain", "ratio", [a / b for a, b in zip(summed, alone)], group=GROUP, note="time of the copy with checksums of the source")
    w.job = f"{job}-packed"
    add_packed(w, state)
