# SPDX-License-Identifier: Apache-2.0
"""Saves of a state of one size: how long the caller is held, the copy beside the bus alone, what blocks the training stream, when it is durable."""
import time

import cairn
from gpu_device import Link
from gpu_state import Step, label, make, size, timed

GROUP = "saves"
MIB = 1 << 20


class Saver:
    """Saves of one state, each committed before the next begins: the daemon is idle, and the disk holds two at most."""

    def __init__(self, w, state, **options):
        self.w, self.state, self.step = w, state, 0
        self.checkpointer = cairn.Checkpointer(w.job, socket=w.socket, arena=int(size(state) * 1.02) + 64 * MIB, timeout=120, raise_errors=True, **options)
        self.held, self.handle = [], None

    def save(self):
        if self.w.one_on_disk and self.step:
            with self.checkpointer.observe() as session:
                session.command("delete", self.w.job, self.step)
        self.step += 1
        seconds, self.handle = timed(lambda: self.checkpointer.save(self.step, self.state))
        self.held.append(seconds)
        return self.handle

    def copied(self):
        """Seconds from the call to the snapshot's completion; the GPU was idle."""
        self.w.on.sync()
        begin = time.perf_counter()
        self.save().wait("snapshot", timeout=120)
        return time.perf_counter() - begin, begin

    def committed(self):
        self.handle.wait("committed", timeout=max(30.0, min(300.0, self.w.left() + 60)))

    def close(self):
        self.checkpointer.close()


def run_cairn(w):
    state = make(w, w.bytes, w.tensor_bytes)
    total, tag = size(state), label(w)
    link, saver = Link(w.on, min(w.link_bytes, total)), Saver(w, state)
    first = saver.copied()[0]
    saver.committed()
    held, saver.held = saver.held, []
    copies, ratios, blocked, durable = [], [], [], []
    step = None
    for i in w.turns(w.reps):
        alone = link.to_host()
        copy_s, begin = saver.copied()
        saver.committed()
        durable.append(total / (time.perf_counter() - begin))
        copies.append(copy_s)
        ratios.append(total / copy_s / alone)
        step = step or Step(w, state, copy_s / 0.8)
        if i > 0 and w.left() < total / durable[-1] * 1.5:
            break
        blocked.append(step.blocked(saver.save, saver.checkpointer.fence))
        saver.committed()
    note = f"{total / 2**30:.2f} GiB in {len(state)} tensors"
    w.add(f"held_{tag}", "s", saver.held, group=GROUP, note=note)
    w.add(f"held_most_{tag}", "s", [max(saver.held)], target=("<=", 0.002), group=GROUP, n=len(saver.held))
    w.add(f"first_save_{tag}", "s", [first], group=GROUP, note=f"opens the session, faults the arena in and pins it; held {held[0]:.2f} s")
    w.add(f"copy_{tag}", "GB/s", [total / s / 1e9 for s in copies], limit=link.to_host() / 1e9, limit_name="pinned copy", group=GROUP)
    w.add(f"copy_over_limit_{tag}", "ratio", ratios, target=(">=", 0.95), group=GROUP)
    if blocked:
        w.add(f"blocked_{tag}", "s", blocked, group=GROUP, note=f"beside work of {step.alone_s * 1e3:.0f} ms, of which the copy is 0.8")
        w.value(**{f"blocked_{tag}": sorted(blocked)[len(blocked) // 2]})
    else:
        w.missing(f"blocked_{tag}", "s", "the time was over", group=GROUP)
    w.add(f"durable_{tag}", "GB/s", [d / 1e9 for d in durable], limit=w.disk_write / 1e9 if w.disk_write else None, limit_name="disk write", group=GROUP,
          note="state committed to one peer on this disk; encoded, so it may be more than the disk writes")
    saver.close()
