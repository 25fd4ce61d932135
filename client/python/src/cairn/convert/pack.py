# SPDX-License-Identifier: Apache-2.0
"""Which rank of an import takes what. A checkpoint is imported as a world of ranks that come one after
another: each has an arena of a bounded size, whatever the size of the checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Dict, List, Optional, Sequence

from .boxes import Dims, cut
from .source import ITEMSIZE, Item

PART = 1 << 20  # an arena's page
_ALIGN = 64  # of a slice within its dtype's pages
_MAX_SLICES = 100_000  # of a rank: what a table may have is more, what is quick is less


@dataclass(frozen=True)
class Piece:
    """What one rank takes of an item, or a document (then item is None)."""

    name: str
    dtype: str
    shape: Dims
    offset: Dims  # in the tensor
    length: Dims
    start: Dims  # in the item
    item: Optional[Item]
    data: bytes = b""  # of a document

    @property
    def nbytes(self) -> int:
        return math.prod(self.length) * ITEMSIZE[self.dtype]


@dataclass
class Share:
    """What one rank takes, and the room it needs: libcairn packs slices by dtype, each dtype in pages of its
    own."""

    pieces: List[Piece] = field(default_factory=list)
    ends: Dict[str, int] = field(default_factory=dict)  # of each dtype's slices, in bytes

    def _end_with(self, piece: Piece) -> int:
        return -(-self.ends.get(piece.dtype, 0) // _ALIGN) * _ALIGN + piece.nbytes

    def bytes_with(self, piece: Piece) -> int:
        """Bytes of its arena, were the piece added."""
        ends = {**self.ends, piece.dtype: self._end_with(piece)}
        return sum(-(-end // PART) for end in ends.values()) * PART

    def add(self, piece: Piece) -> None:
        self.ends[piece.dtype] = self._end_with(piece)
        self.pieces.append(piece)

    @property
    def arena_bytes(self) -> int:
        return max(sum(-(-end // PART) for end in self.ends.values()), 1) * PART


def _pieces_of(item: Item, limit: int) -> List[Piece]:
    pieces = []
    for start, length in cut(item.length, ITEMSIZE[item.dtype], limit):
        offset = tuple(a + b for a, b in zip(item.offset, start))
        pieces.append(Piece(item.name, item.dtype, item.shape, offset, length, start, item))
    return pieces


def document(name: str, data: bytes) -> Piece:
    """A document as a piece: bytes of one dimension."""
    return Piece(name, "BYTES", (len(data),), (0,), (len(data),), (0,), None, data)


def pack(items: Sequence[Item], documents: Dict[str, bytes], arena_bytes: int) -> List[Share]:
    """Deals items to as many ranks as it takes, in order; rank 0 has the documents. arena_bytes bounds each
    rank but where a document alone is larger. Items larger than a quarter of it are cut along dimension 0."""
    limit = max(arena_bytes // PART, 1) * PART
    shares = [Share()]
    for name, data in documents.items():
        shares[0].add(document(name, data))
    for item in items:
        for piece in _pieces_of(item, max(limit // 4, PART)):
            last = shares[-1]
            if last.pieces and (last.bytes_with(piece) > limit or len(last.pieces) >= _MAX_SLICES):
                last = Share()
                shares.append(last)
            last.add(piece)
    return shares
