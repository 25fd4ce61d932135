# SPDX-License-Identifier: Apache-2.0
"""What Cairn knows about numpy: dtypes and memory of arrays. Imported only where a program has arrays."""

from __future__ import annotations

from typing import Any, NamedTuple, Optional

import numpy

from .errors import InvalidError

_NAMES = {
    "|b1": "BOOL",
    "|u1": "U8",
    "|i1": "I8",
    "<u2": "U16",
    "<i2": "I16",
    "<u4": "U32",
    "<i4": "I32",
    "<u8": "U64",
    "<i8": "I64",
    "<f2": "F16",
    "<f4": "F32",
    "<f8": "F64",
    "<c8": "C64",
}
_TO_DTYPE = {name: numpy.dtype(text) for text, name in _NAMES.items()}


def true_name(array: Any, path: str) -> Optional[str]:
    """numpy's name of a dtype ("<c16") where Cairn has none, else None. Raises InvalidError for objects and
    records."""
    dtype = array.dtype
    if dtype.hasobject or dtype.fields or dtype.subdtype or not dtype.isbuiltin and dtype.kind == "V":
        raise InvalidError(
            f"{path} is an array of {dtype}, which has no plain bytes: save its columns or items one by one"
        )
    return None if dtype.str in _NAMES else dtype.str


def dtype_of(name: str) -> Any:
    """The dtype of Cairn's name or of numpy's typestr; None where this numpy has none."""
    try:
        return _TO_DTYPE.get(name) or numpy.dtype("|u1" if name == "BYTES" else name)
    except (TypeError, ValueError):
        return None


class Piece(NamedTuple):
    """As _torch.Piece."""

    dtype: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    length: tuple[int, ...]
    strides: Optional[tuple[int, ...]]
    address: int
    local: Any
    device: int = 0


def pieces_of(array: Any, path: str, direct: bool = False) -> list[Piece]:
    """An array is one piece. path: for messages."""
    name, shape, strides = _NAMES.get(array.dtype.str), array.shape, array.strides
    if array.flags.c_contiguous:
        strides = None
    if name is None:
        true_name(array, path)
        shape, strides = (*shape, array.itemsize), None if strides is None else (*strides, 1)
    return [Piece(name or "BYTES", shape, (0,) * len(shape), shape, strides, address_of(array), array)]


def address_of(array: Any) -> int:
    return array.__array_interface__["data"][0]


def identity(array: Any) -> Optional[tuple[Any, ...]]:
    """Equal only for the same memory seen the same way."""
    return (address_of(array), array.dtype.str, array.shape, array.strides) if array.size else None


def base_of(array: Any, direct: bool = False) -> int:
    return address_of(array)


def has_one_place(array: Any) -> bool:
    return True


def is_distributed(array: Any) -> bool:
    return False


def stores(array: Any, name: str) -> bool:
    return True


def name_of(array: Any) -> str:
    """A dtype as messages call it."""
    return _NAMES.get(array.dtype.str, array.dtype.str)


def item_size(dtype: Any) -> int:
    return dtype.itemsize


def empty(shape: tuple[int, ...], dtype: Any) -> Any:
    return numpy.empty(shape, dtype)


def copy_of(array: Any) -> Any:
    """In memory of its own."""
    return array.copy()


def is_same(a: Any, b: Any) -> bool:
    """Whether two arrays of one dtype and shape have the same bytes."""
    return a.tobytes() == b.tobytes()


def targets_of(array: Any, path: str, reach: Any = None) -> tuple[list[Piece], list[Any]]:
    """Where to read an array to, and nothing to be done afterwards."""
    if not array.flags.writeable:
        raise InvalidError(f"{path} is a read-only array: load into copy() of it")
    return pieces_of(array, path), []
