# SPDX-License-Identifier: Apache-2.0
"""Memory by address: arenas are written to, and buffers restored into, without a copy between."""

from __future__ import annotations

import ctypes
from typing import Union


def view(address: int, nbytes: int) -> memoryview:
    """The nbytes bytes at address, writable. The caller keeps them alive for as long as the view is used."""
    if nbytes == 0:
        return memoryview(bytearray())
    return memoryview((ctypes.c_ubyte * nbytes).from_address(address)).cast("B")


def address_of(buffer: Union[bytearray, memoryview]) -> int:
    """Where a writable buffer of at least one byte lies. It must neither move nor be freed while that is
    used."""
    return ctypes.addressof(ctypes.c_ubyte.from_buffer(buffer))
