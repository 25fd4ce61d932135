# SPDX-License-Identifier: Apache-2.0
"""Half of the state is frozen: with CAIRN_TRACK it is read and not copied. And what checksums of the source cost."""
from gpu_cairn import Saver
from gpu_state import make, size

GROUP = "unchanged parts, checksums"


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


def run_track(w):
    state, job = make(w, w.bytes, w.tensor_bytes), w.job
    half = frozen_half(w, state)
    w.job = f"{job}-plain"
    alone = plain(w, state)
    w.add("frozen_half_over_full", "ratio", [a / b for a, b in zip(half, alone)], group=GROUP, note="time of the copy")
    w.job = f"{job}-sums"
    summed = plain(w, state, source_sums=True)
    w.add("source_sums_over_plain", "ratio", [a / b for a, b in zip(summed, alone)], group=GROUP, note="time of the copy with checksums of the source")
