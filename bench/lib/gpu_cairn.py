# SPDX-License-Identifier: Apache-2.0
"""Saves of a state of one size: how long the caller is held, the copy beside the bus alone, what blocks the training stream, when it is durable."""
import statistics
import threading
import time

import cairn
from gpu_device import Link
from gpu_state import Step, label, make, size, timed

GROUP = "saves"
MIB = 1 << 20


class Saver:
    """Saves of one state, each committed before the next begins: the daemon is idle, and the disk holds two at most."""

    def __init__(self, w, state, static=False, **options):
        self.w, self.state, self.step = w, state, 0
        self.checkpointer = cairn.Checkpointer(w.job, socket=w.socket, arena=int(size(state) * 1.02) + 64 * MIB, timeout=120, raise_errors=True,
                                               overlap=True, **options)
        self.prepare_s = timed(lambda: self.checkpointer.prepare(state, static=static))[0]
        self.held, self.handle, self.info = [], None, {}

    def save(self):
        self.step += 1
        seconds, self.handle = timed(lambda: self.checkpointer.save(self.step, self.state))
        self.held.append(seconds)
        return self.handle

    def copied(self):
        """Seconds from the call to the snapshot's completion, beside nothing, and when it began."""
        self.w.on.sync()
        begin = time.perf_counter()
        self.save().wait("snapshot", timeout=120)
        seconds, self.info = time.perf_counter() - begin, self.handle.info()
        if self.w.device == "cuda" and not self.info["device_bytes"]:
            raise RuntimeError("the tensors did not go from the device to the arena by themselves: what was said above tells why")
        return seconds, begin

    def committed(self):
        self.handle.wait("committed", timeout=max(30.0, min(300.0, self.w.left() + 60)))

    def close(self):
        self.checkpointer.close()


class Findings:
    def __init__(self):
        self.copies, self.ratios, self.blocked, self.durable, self.alone_s = [], [], [], [], 0.0

    def turn(self, w, saver, link, state):
        """A save beside nothing, then one beside what trains."""
        total, alone = size(state), link.to_host()
        copy_s, begin = saver.copied()
        saver.committed()
        self.durable.append(total / (time.perf_counter() - begin))
        self.copies.append(copy_s)
        self.ratios.append(total / copy_s / alone)
        if w.left() < total / self.durable[-1] * 1.2:
            return
        step = Step(w, state, copy_s / 0.8)
        self.blocked.append(step.blocked(saver.save, saver.checkpointer.fence))
        self.alone_s = step.alone_s
        saver.committed()


    def only(self, w, saver, link, state):
        """The disk holds one: a single save beside what trains, of which another thread sees when it has been copied."""
        total, alone = size(state), link.to_host()
        copied, watchers = [], []

        def save():
            begin = time.perf_counter()
            handle = saver.save()

            def look():
                handle.wait("snapshot", timeout=120)
                copied.append(time.perf_counter() - begin)

            watchers.append((begin, threading.Thread(target=look)))
            watchers[0][1].start()

        step = Step(w, state, total / alone / 0.8)
        self.blocked.append(step.blocked(save, saver.checkpointer.fence))
        self.alone_s = step.alone_s
        begin, watcher = watchers[0]
        watcher.join(120)
        saver.committed()
        self.durable.append(total / (time.perf_counter() - begin))
        self.copies += copied
        self.ratios.append(total / copied[0] / alone)


def run_cairn(w):
    state = make(w, w.bytes, w.tensor_bytes)
    total, tag = size(state), label(w)
    link, saver, found = Link(w.on, min(w.link_bytes, total)), Saver(w, state), Findings()
    w.add(f"prepare_{tag}", "s", [saver.prepare_s], group=GROUP, note="once: opens the session, faults the arena in and pins it")
    if w.one_on_disk:
        w.say("the disk has room for one checkpoint of this size: one save, beside what trains")
        found.only(w, saver, link, state)
    else:
        for _ in w.turns(w.reps):
            found.turn(w, saver, link, state)
    first, held = saver.held[0], saver.held[1:] or saver.held
    note = f"{total / 2**30:.2f} GiB in {len(state)} tensors; the first, which makes the plan, {first * 1e3:.1f} ms"
    w.add(f"held_{tag}", "s", held, group=GROUP, note=note)
    w.add(f"held_most_{tag}", "s", [max(held)], target=("<=", 0.002), group=GROUP, n=len(held))
    w.add(f"copy_{tag}", "GB/s", [total / s / 1e9 for s in found.copies], limit=link.to_host() / 1e9, limit_name="pinned copy", group=GROUP)
    w.add(f"copy_over_limit_{tag}", "ratio", found.ratios, target=(">=", 0.95), group=GROUP)
    if found.blocked:
        w.add(f"blocked_{tag}", "s", found.blocked, group=GROUP, note=f"beside work of {found.alone_s * 1e3:.0f} ms, of which the copy is 0.8")
        w.value(**{f"blocked_{tag}": statistics.median(found.blocked)})
    else:
        w.missing(f"blocked_{tag}", "s", "the time was over", group=GROUP)
    w.add(f"durable_{tag}", "GB/s", [d / 1e9 for d in found.durable], limit=w.disk_write / 1e9 if w.disk_write else None, limit_name="disk write", group=GROUP,
          note="state committed to one peer on this disk; encoded, so it may be more than the disk writes")
    saver.close()
