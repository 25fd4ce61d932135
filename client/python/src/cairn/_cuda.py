# SPDX-License-Identifier: Apache-2.0
"""What Cairn knows about CUDA in torch: where a tensor lies, and streams. The only module that asks
torch.cuda, so that a test without a GPU can put a double of a device in its place.

A device is a number as libcairn has it: 0 for this host, cairn.cuda(i) for GPU i.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Optional

import torch

from . import _lib


def device_of(tensor: torch.Tensor) -> Optional[int]:
    """Where the tensor's memory is; None where libcairn does not reach (MPS, XPU, ROCm)."""
    if tensor.is_cpu:
        return _lib.HOST
    if tensor.is_cuda and torch.version.hip is None:
        return _lib.cuda(tensor.get_device())
    return None


def stream_of(device: int) -> int:
    """The stream that this thread puts its work for the device into."""
    return torch.cuda.current_stream(_ordinal(device)).cuda_stream


def named(stream: Any) -> tuple[int, int]:
    """Device and handle of a torch.cuda.Stream."""
    return _lib.cuda(stream.device.index), stream.cuda_stream


def is_capturing() -> bool:
    """Whether this thread's work is being captured into a CUDA graph. Where torch has not used CUDA it is not
    asked: it would make a context on the first GPU, which costs a second and its memory, and fail in a forked
    process."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def synchronize(devices: Iterable[int]) -> None:
    """Waits, on the host, for what this thread has put into its streams of these devices."""
    for device in devices:
        torch.cuda.current_stream(_ordinal(device)).synchronize()


def memory_of(tensors: Iterable[torch.Tensor]) -> list[Any]:
    """What keeps the memory of these tensors theirs, whatever becomes of the tensors: one may get other
    memory, by `p.data = ...`, while the old is still being copied."""
    return list(map(torch.Tensor.untyped_storage, tensors))


def _ordinal(device: int) -> int:
    return device - _lib.cuda(0)
