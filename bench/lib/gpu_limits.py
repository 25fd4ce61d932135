# SPDX-License-Identifier: Apache-2.0
"""What the machine can do alone: copies over the bus, reading the device's own memory."""
import torch
from gpu_device import Link

GROUP = "limits"


def reading(w, nbytes):
    """Rates of reductions that read all of it and write next to nothing; the fastest is the limit of what can be read."""
    x = torch.ones(nbytes // 4, dtype=torch.float32, device=w.on.kind)
    best = {}
    for name, work in (("sum", lambda: torch.sum(x)), ("amax", lambda: torch.amax(x))):
        rates = []
        for _ in range(8):
            begin = w.on.mark()
            work()
            rates.append(nbytes / w.on.between(begin, w.on.mark()))
        best[name] = rates[3:]
    name = max(best, key=lambda k: sorted(best[k])[len(best[k]) // 2])
    return name, best[name]


def run_limits(w):
    w.say(w.on.describe())
    w.value(gpu=w.on.describe())
    link = Link(w.on, w.link_bytes)
    down, up = [link.to_host() for _ in range(7)], [link.to_device() for _ in range(7)]
    name, reads = reading(w, w.link_bytes * 4)
    y = torch.empty_like(link.there)
    copies = []
    for _ in range(5):
        begin = w.on.mark()
        y.copy_(link.there, non_blocking=True)
        copies.append(2 * w.link_bytes / w.on.between(begin, w.on.mark()))
    w.add("pinned_to_host", "GB/s", [r / 1e9 for r in down], group=GROUP, note=f"{w.link_bytes >> 20} MiB, one copy at a time")
    w.add("pinned_to_device", "GB/s", [r / 1e9 for r in up], group=GROUP)
    w.add("device_read", "GB/s", [r / 1e9 for r in reads], group=GROUP, note=f"torch.{name}")
    w.add("device_copy", "GB/s", [r / 1e9 for r in copies], group=GROUP, note="within the device: bytes read and written")
    if w.device == "cuda":
        w.value(cudart=next((line.split()[-1] for line in open("/proc/self/maps") if "libcudart" in line), None))
