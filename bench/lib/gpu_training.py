# SPDX-License-Identifier: Apache-2.0
"""Real training with saves every ten steps and every step, beside the same steps without: what they cost, and how much of the copy is hidden.

Steps are timed by the GPU's own clock, from the start of one to the start of the next; the host runs two steps ahead at most. A save follows the optimizer's
step; the fence stands before the next."""
import statistics
import time

import cairn
from gpu_model import Training, choose
from gpu_state import timed

GROUP = "training"
MIB = 1 << 20
STEP_S = 0.12  # about


def quantile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Loop:
    def __init__(self, w, training):
        self.w, self.on, self.training = w, w.on, training
        self.state, self.steps = training.state(), 0
        self.held, self.blocked, self.available, self.skipped = [], [], [], 0

    def run(self, n, every=0, save=None, fence=None):
        """(seconds of each step, those of the steps that began with a save)."""
        marks, fences, saving = [], [], []
        for i in range(n):
            self.steps += 1
            marks.append(self.on.mark())
            saves = every and i % every == min(1, every - 1) and self._save(save)  # not the first, before which nothing runs
            self.training.forward_backward()
            before = self.on.mark()
            if fence:
                fence()
            if saves:
                saving.append(i)
                fences.append((marks[-1], before, self.on.mark()))
            self.training.update()
            if i >= 2:
                self.on.reached(marks[i - 1])
        marks.append(self.on.mark())
        self.on.sync()
        seconds = [self.on.between(a, b) for a, b in zip(marks, marks[1:])]
        self.blocked += [self.on.between(before, after) for _, before, after in fences]
        self.available += [self.on.between(begin, before) for begin, before, _ in fences]
        return seconds, [seconds[i] for i in saving]

    def _save(self, save):
        self.state["step"] = self.steps
        held, handle = timed(lambda: save(self.steps, self.state))
        if handle is None:
            self.skipped += 1
            return False
        self.held.append(held)
        return True


class Saves:
    """Into an arena of two snapshots; when it has no room, the step is skipped and counted."""

    def __init__(self, w, training):
        self.w, self.last = w, None
        self.checkpointer = cairn.Checkpointer(w.job, socket=w.socket, arena=int(training.bytes() * 2.3) + 64 * MIB, on_busy="skip", timeout=120,
                                               raise_errors=True, overlap=True)
        self.checkpointer.prepare(training.state())
        self.fence = self.checkpointer.fence

    def save(self, step, state):
        handle = self.checkpointer.save(step, state)
        self.last = handle or self.last
        return handle

    def settle(self):
        if self.last:
            self.last.wait("committed", timeout=120)

    def copy_s(self, loop, n):
        """The copy alone, nothing beside it."""
        seconds = []
        for i in range(n + 1):
            loop.steps += 1
            loop.state["step"] = loop.steps
            self.w.on.sync()
            begin = time.perf_counter()
            self.save(loop.steps, loop.state).wait("snapshot", timeout=120)
            if i:
                seconds.append(time.perf_counter() - begin)
            self.settle()
        return statistics.median(seconds)

    def close(self):
        self.checkpointer.close()


def made(w, shape, batch, length, resize=True):
    """Steps of about STEP_S, the first of them done: their libraries are loaded, the optimizer has its state."""
    training = Training(w.on, shape, batch, length)
    loop = Loop(w, training)
    loop.run(4)
    if w.device == "cuda" and resize:
        step = statistics.median(loop.run(6)[0])
        training.resize(max(2, min(60, round(batch * STEP_S / step))))  # below 2^31 logits
        loop.run(4)
    return training, loop


def alternating(w, loop, saves):
    """Blocks without saves and with one every ten steps, in turns. Returns (means, means, all steps, all steps, saving steps)."""
    plain_means, saved_means, plain, saved, saving = [], [], [], [], []
    until = w.left() * 0.6
    for i in range(w.blocks):
        if i >= 2 and w.seconds - w.left() > until:
            break
        seconds = loop.run(w.block_steps)[0][1:]
        plain_means.append(statistics.fmean(seconds))
        plain += seconds
        seconds, those = loop.run(w.block_steps, 10, saves.save, saves.fence)
        seconds = seconds[1:]
        saved_means.append(statistics.fmean(seconds))
        saved += seconds
        saving += those
        saves.settle()
    return plain_means, saved_means, plain, saved, saving


def report_every_ten(w, loop, copy_s, found):
    plain_means, saved_means, plain, saved, saving = found
    available = statistics.median(loop.available)
    within = copy_s <= 0.8 * available
    note = f"copy {copy_s * 1e3:.0f} ms, forward and backward {available * 1e3:.0f} ms; {len(saved)} steps, {len(saving)} saves, {loop.skipped} skipped"
    w.add("step_alone", "s", plain, group=GROUP)
    w.add("step_every_10", "s", saved, group=GROUP)
    w.add("mean_step_every_10_over_alone", "ratio", [b / a for a, b in zip(plain_means, saved_means)], group=GROUP, note=note,
          target=("<=", 1.03) if within else None)
    w.add("saving_step_p99_over_alone_p99", "ratio", [quantile(saving, 0.99) / quantile(plain, 0.99)], group=GROUP, n=len(saving),
          target=("<=", 1.03) if within else None, note=f"p50 {quantile(saving, 0.5) * 1e3:.1f} ms, p99 {quantile(saving, 0.99) * 1e3:.1f} ms")
    w.add("held_training", "s", loop.held, target=("<=", 0.002), group=GROUP, note="of the thread that trains, by save()")
    w.add("held_training_most", "s", [max(loop.held)], group=GROUP, n=len(loop.held))
    w.add("blocked_training", "s", loop.blocked, group=GROUP, limit=copy_s, limit_name="copy alone", note="of the stream, at the fence")
    w.add("copy_hidden", "ratio", [max(0.0, 1 - b / copy_s) for b in loop.blocked], group=GROUP)
    w.value(blocked_training=statistics.median(loop.blocked), step_alone=statistics.median(plain))


def every_step(w, loop, saves):
    loop.held, loop.blocked, loop.available, loop.skipped = [], [], [], 0
    seconds, saving = loop.run(w.block_steps * 2, 1, saves.save, saves.fence)
    saves.settle()
    w.add("step_every_step", "s", seconds, group=GROUP, n=len(seconds),
          note=f"p50 {quantile(seconds, 0.5) * 1e3:.1f} ms, p99 {quantile(seconds, 0.99) * 1e3:.1f} ms; {len(saving)} saves, {loop.skipped} steps skipped "
               "because the arena was full: the disk does not follow")
    if saving:
        w.add("saving_step_every_step", "s", saving, group=GROUP, n=len(saving), note="those that were saved")


def by_dcp(w, loop, alone):
    """Every ten steps, staged into pinned memory before async_save returns; what is above a step alone is what it blocks."""
    import torch.distributed as dist
    from gpu_peers import Dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    by = Dcp(w, "pinned")

    def save(step, state):
        if by.response is not None:
            by.done()
        model, optimizer = get_state_dict(loop.training.model, loop.training.optimizer)
        by.save({"model": model, "optimizer": optimizer})
        return by

    try:
        loop.run(2, 1, save)  # takes the memory
        loop.held, loop.blocked, loop.available = [], [], []
        saving = loop.run(w.block_steps, 10, save)[1]
        by.done()
    finally:
        by.close()
        dist.destroy_process_group()
    blocked = [max(0.0, s - alone) for s in saving]
    w.add("blocked_training_dcp", "s", blocked, group=GROUP, note="dcp.async_save with pinned staging: a saving step less one alone")
    w.value(blocked_training_dcp=statistics.median(blocked))


def run_training(w):
    shape = choose(w.disk_write or 1e9, 10 * STEP_S) if w.device == "cuda" else "tiny"
    training, loop = made(w, shape, w.batch, w.length)
    w.say(f"GPT of {training.bytes() / 6e6:.0f} M parameters, {training.bytes() / 2**30:.2f} GiB of state, {training.batch} x {training.length} tokens a step")
    saves = Saves(w, training)
    copy_s = saves.copy_s(loop, 3)
    loop.held = []
    found = alternating(w, loop, saves)
    report_every_ten(w, loop, copy_s, found)
    if w.left() > 15 or w.device != "cuda":
        every_step(w, loop, saves)
    else:
        w.missing("step_every_step", "s", "the time was over", group=GROUP)
    saves.close()
    if w.left() > 15 or w.device != "cuda":
        by_dcp(w, loop, statistics.median(found[2]))
    else:
        w.missing("blocked_training_dcp", "s", "the time was over", group=GROUP)


def run_long(w):
    """A copy that is longer than forward and backward: what is left of it is all that may block."""
    training, loop = made(w, "760M" if w.device == "cuda" else "tiny", 2 if w.device == "cuda" else 1, w.length, resize=False)
    saves = Saves(w, training)
    copy_s = saves.copy_s(loop, 1)
    loop.held, loop.blocked, loop.available = [], [], []
    for _ in w.turns(6, least=2):
        loop.run(3, 10, saves.save, saves.fence)
        saves.settle()
    saves.close()
    available = statistics.median(loop.available)
    note = f"{training.bytes() / 2**30:.1f} GiB; copy {copy_s * 1e3:.0f} ms, forward and backward {available * 1e3:.0f} ms"
    w.add("blocked_long", "s", loop.blocked, group=GROUP, note=note)
    if copy_s > available:
        w.add("blocked_long_over_rest", "ratio", [b / (copy_s - a) for a, b in zip(loop.available, loop.blocked) if copy_s > a], group=GROUP,
              note="blocked / (copy - forward and backward)")
    else:
        w.missing("blocked_long_over_rest", "ratio", "the copy is shorter than forward and backward", group=GROUP)
