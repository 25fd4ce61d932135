# SPDX-License-Identifier: Apache-2.0
"""Tensors as memory: rows of a table, and tensors over memory that is given."""
from __future__ import annotations

import ctypes
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Optional

import torch

from .. import _cuda, _lib
from .._torch import bytes_strides, check, dtype_name
from ..table import Table

ALIGN = 64  # CAIRN_TENSOR_ALIGN


@dataclasses.dataclass(frozen=True)
class Row:
    """A slice of a tensor as a table wants it (see Table.add), and the tensor that holds its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    length: tuple[int, ...]
    strides: Optional[tuple[int, ...]]
    tensor: torch.Tensor

    @property
    def device(self) -> int:
        """Where the tensor is; the host for what on_host() makes, and for what libcairn does not reach."""
        return _cuda.device_of(self.tensor) or _lib.HOST

    def is_on_host(self) -> bool:
        """A key of order: what the host copies lies behind what devices copy, so that parts of the image are theirs alone."""
        return self.device == _lib.HOST

    @property
    def bytes(self) -> int:
        return math.prod(self.length) * _lib.ITEM_SIZES[self.dtype]

    def add_to(self, table: Table, by_address: bool = True) -> int:
        """Notes it; without its address it is the caller's to write."""
        address = self.tensor.data_ptr() if by_address else 0
        return table.add(self.name, self.dtype, self.shape, address, offset=self.offset, length=self.length,
                         strides=self.strides if by_address else None, device=self.device if by_address else _lib.HOST,
                         keep=self.tensor)

    def on_host(self) -> "Row":
        """The same of a copy on this host."""
        if self.device == _lib.HOST:
            return self
        tensor = self.tensor.to("cpu", copy=True)
        strides = bytes_strides(tensor)
        more = (1,) * (len(self.length) - tensor.ndim)
        return dataclasses.replace(self, tensor=tensor, strides=None if strides is None else (*strides, *more))


def row_of(name: str, tensor: torch.Tensor, shape: Sequence[int], offset: Sequence[int]) -> Row:
    """The row of a piece of a tensor: `tensor` begins at `offset` of the whole, whose sizes are `shape`. A dtype that Cairn
    does not know becomes bytes with one dimension more. Raises InvalidError for what is not all in its bytes."""
    dtype, strides, last = dtype_name(tensor.dtype), bytes_strides(tensor), ()
    if dtype is None:
        dtype, last = "BYTES", (tensor.element_size(),)
        strides = None if strides is None else (*strides, 1)
    zero = (0,) * len(last)
    return Row(name, dtype, (*shape, *last), (*offset, *zero), (*tensor.shape, *last), strides, tensor)


def bytes_row(name: str, data: bytes, room: int) -> Row:
    """A row of raw bytes, zero-filled up to the room."""
    content = bytearray(data.ljust(room, b"\0"))
    tensor = torch.frombuffer(content, dtype=torch.uint8) if room else torch.empty(0, dtype=torch.uint8)
    return Row(name, "BYTES", (room,), (0,), (room,), None, tensor)


def readable(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """The tensor as strided memory that libcairn may reach: itself, or a copy where it is conjugated lazily, or lies on a device
    that libcairn does not know."""
    tensor = tensor.detach()
    check(tensor, f'tensor "{name}"')
    if _cuda.device_of(tensor) is None:
        tensor = tensor.cpu()
    return tensor.resolve_conj().resolve_neg()


def is_writable_in_place(tensor: torch.Tensor) -> bool:
    """Whether bytes can be read straight into the tensor's memory: on this host or a device, each element in a place of its own."""
    if _cuda.device_of(tensor) is None or tensor.layout != torch.strided or tensor.is_conj() or tensor.is_neg():
        return False
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape)):
        if size > 1 and stride <= reach:
            return False  # an expanded dimension, or windows that overlap
        reach += stride * (size - 1)
    return True


def over(address: int, dtype: torch.dtype, shape: Sequence[int], owner: Any) -> torch.Tensor:
    """A dense tensor over memory at an address. The owner lives as long as the tensor's storage does."""
    count = math.prod(shape)
    if count == 0:
        return torch.empty(tuple(shape), dtype=dtype)
    room = _room_type(count * dtype.itemsize).from_address(address)
    room.owner = owner
    flat = torch.frombuffer(room, dtype=dtype)
    return flat if len(shape) == 1 else flat.view(shape)


@functools.lru_cache(maxsize=4096)
def _room_type(nbytes: int) -> Any:
    """A ctypes array whose instances take attributes."""
    return type("Room", (ctypes.c_uint8 * nbytes,), {})


def content_of(tensor: torch.Tensor) -> bytes:
    """The bytes of a dense tensor of this host."""
    return ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size()) if tensor.numel() else b""


def sizes_of(rows: Sequence[Row]) -> dict[str, int]:
    """Bytes of each dtype as an arena holds them."""
    sizes: dict[str, int] = {}
    for row in rows:
        sizes[row.dtype] = sizes.get(row.dtype, 0) + -(-row.bytes // ALIGN) * ALIGN
    return sizes
