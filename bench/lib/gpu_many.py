# SPDX-License-Identifier: Apache-2.0
"""A state of very many tensors: what holds the caller is their number, not their bytes."""
from gpu_cairn import Saver
from gpu_device import Link
from gpu_state import make, size

GROUP = "many tensors"


def run_many(w):
    state = make(w, w.many * w.many_bytes, w.many_bytes)
    total, link, saver = size(state), Link(w.on, min(w.link_bytes, w.many * w.many_bytes)), Saver(w, state, static=True)
    saver.copied()
    saver.committed()
    (first,), saver.held = saver.held, []
    ratios = []
    for _ in w.turns(w.many_reps, least=3):
        alone = link.to_host()
        ratios.append(total / saver.copied()[0] / alone)
        saver.committed()
    note = f"{len(state)} tensors, {total / 2**20:.0f} MiB; the first, which makes the plan, {first * 1e3:.0f} ms"
    w.add("held_many", "s", saver.held, target=("<=", 0.002), group=GROUP, note=note)
    w.add("held_many_most", "s", [max(saver.held)], target=("<=", 0.002), group=GROUP, n=len(saver.held))
    w.add("copy_many_over_limit", "ratio", ratios, target=(">=", 0.95), group=GROUP)
    saver.close()
