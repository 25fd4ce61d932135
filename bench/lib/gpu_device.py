# SPDX-License-Identifier: Apache-2.0
"""The few calls of torch.cuda that the measurement makes, and the same with CPU tensors, so that everything else can be tried without a GPU."""
import time

import torch


class Cuda:
    """The first GPU. Times are of its own clock: between two marks in the current stream."""

    name, kind = "cuda", "cuda"

    def __init__(self):
        torch.cuda.set_device(0)
        self.matrix = None

    def describe(self):
        p = torch.cuda.get_device_properties(0)
        return f"{p.name}, {p.total_memory / 2**30:.0f} GiB, torch {torch.__version__}, CUDA {torch.version.cuda}"

    def sync(self):
        torch.cuda.synchronize()

    def mark(self):
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def reached(self, mark):
        mark.synchronize()

    def between(self, first, second):
        """Seconds. Waits for the second."""
        second.synchronize()
        return first.elapsed_time(second) / 1e3

    def pinned(self, nbytes):
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def free(self):
        """What torch keeps for the next allocation: it is others' now."""
        self.matrix = None
        torch.cuda.empty_cache()
        if hasattr(torch._C, "_host_emptyCache"):
            torch._C._host_emptyCache()

    def one(self):
        """A piece of work of a millisecond or so that keeps the processor busy, as forward and backward do."""
        if self.matrix is None:
            self.matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
        torch.mm(self.matrix, self.matrix)


class Cpu:
    """Nothing runs behind the caller's back: a mark is the time."""

    name, kind = "cpu", "cpu"

    def __init__(self):
        self.matrix = torch.randn(64, 64)

    def describe(self):
        return f"CPU tensors in place of a GPU's, torch {torch.__version__}: no figure means anything"

    def sync(self):
        pass

    def mark(self):
        return time.perf_counter()

    def reached(self, mark):
        pass

    def between(self, first, second):
        return max(second - first, 1e-9)

    def pinned(self, nbytes):
        return torch.empty(nbytes, dtype=torch.uint8)

    def free(self):
        pass

    def one(self):
        torch.mm(self.matrix, self.matrix)


def open_device(kind):
    return Cuda() if kind == "cuda" else Cpu()


def calibrate(device, n=20):
    """Seconds of one()."""
    for _ in range(3):
        device.one()
    begin = device.mark()
    for _ in range(n):
        device.one()
    return device.between(begin, device.mark()) / n


class Link:
    """Copies between the device and pinned memory, alone: the limit of saves and restores, measured beside each of them."""

    def __init__(self, device, nbytes):
        self.device, self.bytes = device, nbytes
        self.host = device.pinned(nbytes)
        self.host.zero_()
        self.there = torch.zeros(nbytes, dtype=torch.uint8, device=device.kind)
        self.to_host(), self.to_device()

    def _rate(self, to, source):
        self.device.sync()
        begin = self.device.mark()
        to.copy_(source, non_blocking=True)
        return self.bytes / self.device.between(begin, self.device.mark())

    def to_host(self):
        """Bytes a second."""
        return self._rate(self.host, self.there)

    def to_device(self):
        return self._rate(self.there, self.host)
