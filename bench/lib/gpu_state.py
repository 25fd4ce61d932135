# SPDX-License-Identifier: Apache-2.0
"""States of a given size, and what they cost the stream that trains."""
import time

import torch
from gpu_device import calibrate

GIB = 1 << 30


def label(w):
    """Of a size, in names of rows."""
    return f"{w.bytes // GIB}gib" if w.bytes >= GIB else "small"


def make(w, nbytes, tensor_bytes, seed=0):
    """Matrices of bf16, as a model's: values like weights, so that they compress as weights do."""
    n = max(1, nbytes // tensor_bytes)
    rows = max(1, tensor_bytes // 2 // 1024)
    state = {}
    generator = torch.Generator(device=w.on.kind)
    for i in range(n):
        generator.manual_seed(seed * 1000003 + i)
        state[f"layer.{i}.weight"] = torch.empty(rows, 1024, dtype=torch.bfloat16, device=w.on.kind).normal_(0, 0.02, generator=generator)
    return state


def size(state):
    return sum(t.numel() * t.element_size() for t in state.values())


def equal(w, state, tensor_bytes, seed=0):
    """Whether a few of them are what make() made."""
    names = list(state)
    generator = torch.Generator(device=w.on.kind)
    for i in sorted({0, len(names) // 2, len(names) - 1}):
        generator.manual_seed(seed * 1000003 + i)
        if not torch.equal(state[names[i]], torch.empty_like(state[names[i]]).normal_(0, 0.02, generator=generator)):
            return False
    return True


class Step:
    """Work as long as a forward and backward would be, then the first writer. What a save adds to it is what blocks training."""

    def __init__(self, w, state, seconds):
        self.on, self.first = w.on, next(iter(state.values()))
        self.n = max(1, round(seconds / calibrate(w.on)))
        self.alone_s = 0.0

    def run(self, save=None, before_writer=None):
        """Seconds of the stream, from before the save to behind the first writer."""
        self.on.sync()
        begin = self.on.mark()
        if save:
            save()
        for _ in range(self.n):
            self.on.one()
        if before_writer:
            before_writer()
        self.first[0, 0:1].add_(0)
        end = self.on.mark()
        return self.on.between(begin, end)

    def blocked(self, save, before_writer=None):
        """Beside the same without a save just before, when the clocks were as high."""
        self.alone_s = min(self.run() for _ in range(2))
        return max(0.0, self.run(save, before_writer) - self.alone_s)


def timed(function):
    begin = time.perf_counter()
    result = function()
    return time.perf_counter() - begin, result
