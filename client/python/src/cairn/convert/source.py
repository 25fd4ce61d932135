# SPDX-License-Identifier: Apache-2.0
"""What a file that is imported holds, whatever its format."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Callable, Dict, List, Optional, Protocol

from .._lib import ITEM_SIZES
from .boxes import Dims, linear
from .files import SourceFile

ITEMSIZE = ITEM_SIZES  # bytes of one element, by Cairn's (safetensors') name


class Reader(Protocol):
    """Gives the bytes of an item."""

    def read(self, start: Dims, length: Dims, target: memoryview) -> None:
        """Fills target with a box of the item, dense and row-major. The box is one of boxes.cut(): it is one
        run of the row-major item. Boxes of an item are read in order, each once."""


@dataclass(frozen=True)
class Item:
    """A slice of a tensor. shape is the whole tensor's, offset and length say which part this is
    (elements)."""

    name: str
    dtype: str  # as in ITEMSIZE
    shape: Dims
    offset: Dims
    length: Dims
    reader: Reader

    @property
    def nbytes(self) -> int:
        return math.prod(self.length) * ITEMSIZE[self.dtype]


@dataclass
class Source:
    """A checkpoint in files, opened. documents are what goes in beside the tensors (name to bytes). finish()
    is called when every item was read, before the checkpoint is completed: it raises when what was read does
    not verify.
    """

    items: List[Item]
    documents: Dict[str, bytes] = field(default_factory=dict)
    step: Optional[int] = None  # what the files say
    finish: Callable[[], None] = lambda: None
    close: Callable[[], None] = lambda: None

    @property
    def nbytes(self) -> int:
        return sum(item.nbytes for item in self.items)


@dataclass(frozen=True)
class Stored:
    """A Reader: the item lies dense and row-major at an offset of a file."""

    file: SourceFile
    offset: int  # bytes
    shape: Dims  # of the item
    itemsize: int
    tick: Optional[Callable[[int, memoryview], None]] = None  # sees each piece and where in the file it lies

    def read(self, start: Dims, length: Dims, target: memoryview) -> None:
        at = self.offset + linear(start, self.shape) * self.itemsize
        if not self.tick:
            self.file.read_into(target, at)
            return
        tick = self.tick

        def seen(piece: memoryview) -> None:
            nonlocal at
            tick(at, piece)
            at += len(piece)

        self.file.read_into(target, at, seen)


class Nothing:
    """A Reader of a tensor without elements."""

    def read(self, start: Dims, length: Dims, target: memoryview) -> None:
        assert len(target) == 0
