# SPDX-License-Identifier: Apache-2.0
"""Restores to the device, in a process that did not save: from the arena that the dead one left, and from disk."""
import cairn
from gpu_device import Link
from gpu_state import equal, label, make, size, timed

GROUP = "restores"
MIB = 1 << 20


def opened(w, state):
    return cairn.Checkpointer(w.job, socket=w.socket, arena=int(size(state) * 1.02) + 64 * MIB, timeout=120, raise_errors=True)


def loaded(w, checkpointer, state):
    for t in state.values():
        t.zero_()
    w.on.sync()
    seconds, step = timed(lambda: (checkpointer.load(state), w.on.sync())[0])
    if step is None or not equal(w, state, w.tensor_bytes):
        raise RuntimeError("what was restored is not what was saved")
    return seconds


def run_restore(w):
    state = make(w, w.bytes, w.tensor_bytes)
    total, tag = size(state), label(w)
    link = Link(w.on, min(w.link_bytes, total))
    with opened(w, state) as checkpointer:
        first = loaded(w, checkpointer, state)
        ratios, seconds = [], []
        for _ in w.turns(5):
            alone = link.to_device()
            seconds.append(loaded(w, checkpointer, state))
            ratios.append(total / seconds[-1] / alone)
    w.add(f"restore_hot_{tag}", "GB/s", [total / s / 1e9 for s in seconds], limit=link.to_device() / 1e9, limit_name="pinned copy", group=GROUP)
    w.add(f"restore_hot_over_limit_{tag}", "ratio", ratios, target=(">=", 0.9), group=GROUP)
    w.add(f"restore_hot_first_{tag}", "s", [first], group=GROUP, note="opens the session and pins the arena")
    if w.left() < total / (w.disk_write or 1e9):
        w.missing(f"restore_disk_{tag}", "GB/s", "the time was over", group=GROUP)
        return
    w.ask("restart")
    with opened(w, state) as checkpointer:
        cold = loaded(w, checkpointer, state)
    w.add(f"restore_disk_{tag}", "GB/s", [total / cold / 1e9], group=GROUP, note="the daemon was started again: nothing is in memory; with opening")
