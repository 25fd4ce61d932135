# SPDX-License-Identifier: Apache-2.0
"""A tensor table: an array of struct cairn_tensor, packed once for a layout and then used save after save."""
from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from typing import Any, Optional

from . import _lib
from .errors import InvalidError

_WORDS = ctypes.sizeof(_lib.CTensor) // 8  # struct cairn_tensor in words of 8 bytes
_DATA = _lib.CTensor.data.offset // 8
_MAX_DIMS = 16


class Table:
    """Slices of tensors, in the order in which they were added.

    add() notes one; packing happens at the first use and again only after another add(). set_addresses() replaces the
    addresses of all, which is all that a later save of the same layout needs. Not thread-safe.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._rows: list[tuple[int, ...]] = []  # dtype, ndim, 4 places in _dims (-1: NULL), flags and device
        self._dims = array("q")
        self._addresses: list[int] = []
        self._keep: list[Any] = []
        self._words: Optional[array] = None
        self._text: Any = None

    def __len__(self) -> int:
        return len(self.names)

    def add(
        self,
        name: str,
        dtype: str,
        shape: Sequence[int],
        address: int,
        *,
        offset: Optional[Sequence[int]] = None,
        length: Optional[Sequence[int]] = None,
        strides: Optional[Sequence[int]] = None,
        device_writes: bool = False,
        device: int = _lib.HOST,
        volatile: bool = False,
        common: bool = False,
        keep: Any = None,
    ) -> int:
        """Notes a slice and returns its number.

        dtype: safetensors' name ("BF16"), or "BYTES". shape: of the whole tensor, in elements; offset and length: the
        slice, the whole tensor by default. strides: distance between neighbours of each dimension in bytes; row-major
        without gaps by default. address: of the slice's first element; 0 for memory that the caller writes after a
        stage(). device_writes: a device that the kernel does not see writes to this memory. device: where the address is, 0
        for this host or cairn.cuda(i). volatile: of a device's memory, copied aside there, so that later work of the
        save's stream may change it without a fence. common: the ranks that save this slice hold the same bytes. keep: an
        object to hold for as long as the table, usually what owns the memory. Raises InvalidError.
        """
        number = _lib.DTYPES.get(dtype)
        if number is None:
            raise InvalidError(f'tensor "{name}" has dtype {dtype!r}: one of {", ".join(_lib.DTYPES)} is wanted')
        if "\0" in name:
            raise InvalidError(f"tensor {name!r} has a NUL in its name")
        ndim = len(shape)
        if ndim > _MAX_DIMS:
            raise InvalidError(f'tensor "{name}" has {ndim} dimensions: at most {_MAX_DIMS} can be saved')
        places = [self._note_dims(name, d, ndim) for d in (shape, offset, length, strides)]
        flags = device_writes * _lib.DEVICE_WRITES | volatile * _lib.VOLATILE | common * _lib.COMMON
        self._rows.append((number, ndim, *places, flags | device << 32))
        self.names.append(name)
        self._addresses.append(address)
        self._keep.append(keep)
        self._words = None
        return len(self.names) - 1

    def _note_dims(self, name: str, dims: Optional[Sequence[int]], ndim: int) -> int:
        if dims is None:
            return -1
        if len(dims) != ndim:
            raise InvalidError(f'tensor "{name}": {tuple(dims)} should have {ndim} numbers, one for each dimension')
        place = len(self._dims)
        self._dims.extend(dims)
        return place

    def set_addresses(self, addresses: Sequence[int], keep: Any = None) -> None:
        """The slices lie elsewhere now: one address for each, in order. keep: what owns them, instead of what add() was given."""
        if len(addresses) != len(self.names):
            raise InvalidError(f"{len(addresses)} addresses for a table of {len(self.names)} slices")
        self._addresses = list(addresses)
        self._keep = [keep]
        if self._words is not None:
            memoryview(self._words)[_DATA::_WORDS] = array("Q", self._addresses)

    def kept(self) -> list[Any]:
        """What owns the slices' memory, as it was given."""
        return self._keep[0] if len(self._keep) == 1 and isinstance(self._keep[0], list) else self._keep

    def set_address(self, row: int, address: int) -> None:
        """One slice lies elsewhere now."""
        self._addresses[row] = address
        if self._words is not None:
            self._words[row * _WORDS + _DATA] = address

    def pack(self) -> int:
        """The address of the array of struct cairn_tensor, valid until the next add() and while the table lives."""
        if self._words is None:
            self._words = self._pack()
        return self._words.buffer_info()[0]

    def _pack(self) -> array:
        encoded = [n.encode("utf-8", "surrogatepass") for n in self.names]
        self._text = ctypes.create_string_buffer(b"\0".join(encoded) + b"\0")
        name_at = ctypes.addressof(self._text)
        dims_at = self._dims.buffer_info()[0]
        size = ctypes.sizeof(_lib.CTensor)
        words = array("Q")
        for text, row, address in zip(encoded, self._rows, self._addresses):
            dtype, ndim, *places, flags = row
            words.extend((size, name_at, dtype | ndim << 32))
            words.extend(dims_at + 8 * p if p >= 0 else 0 for p in places)
            words.extend((address, flags))
            name_at += len(text) + 1
        return words
