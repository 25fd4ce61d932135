# SPDX-License-Identifier: Apache-2.0
"""Parts of tensors that lie in one piece in row-major memory."""

from __future__ import annotations

import math
from typing import List, Sequence, Tuple

Dims = Tuple[int, ...]
Box = Tuple[Dims, Dims]  # where it begins, how long it is; elements per dimension


def cut(shape: Sequence[int], itemsize: int, limit: int) -> List[Box]:
    """Cuts a tensor of the given shape into boxes of at most limit bytes (or one element), in row-major
    order.

    Along dimension 0, and where one row alone is too large, along the next one: each box is one run of bytes
    of the row-major tensor. A tensor without elements is one box.
    """
    return [(begin, length) for begin, length in _cut(tuple(shape), itemsize, max(limit, itemsize))]


def _cut(shape: Dims, itemsize: int, limit: int) -> List[Box]:
    if math.prod(shape) * itemsize <= limit:
        return [((0,) * len(shape), shape)]
    row = math.prod(shape[1:]) * itemsize
    boxes: List[Box] = []
    if row <= limit:
        rows = limit // row
        for begin in range(0, shape[0], rows):
            length = min(rows, shape[0] - begin)
            boxes.append(((begin,) + (0,) * (len(shape) - 1), (length,) + shape[1:]))
        return boxes
    within = _cut(shape[1:], itemsize, limit)
    for i in range(shape[0]):
        boxes += [((i,) + begin, (1,) + length) for begin, length in within]
    return boxes


def linear(start: Sequence[int], shape: Sequence[int]) -> int:
    """How many elements of a row-major tensor of this shape lie before the element at start."""
    at = 0
    for i, n in zip(start, shape):
        at = at * n + i
    return at


def is_contiguous(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Are these the strides (in elements) of a dense row-major tensor?"""
    expected = 1
    for n, s in zip(reversed(shape), reversed(stride)):
        if n == 0:
            return True
        if n != 1 and s != expected:
            return False
        expected *= n
    return True
