# SPDX-License-Identifier: Apache-2.0
"""A save that is staged but not sealed: its tensors are in the arena, the plan that says what else belongs to it is not
there yet."""
from __future__ import annotations

import ctypes
import dataclasses
import io
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult

from ..errors import InvalidError
from ..session import Save
from . import _document
from ._contents import serialised
from ._document import Document
from ._plan import note_bytes, note_tensor
from ._sessions import Lease, Who

_ADVICE = "save through a StorageWriter without an AsyncStager, or with the default planner"


@dataclasses.dataclass
class Place:
    """Where a slice lies in the arena. value: what a byte stream is made of, until it has been written."""

    address: int
    bytes: int
    value: Any = None


class Staged:
    """The save, and where each item of the plan to come lies in it.

    places: by index in the plan; an item without bytes has none. left: what other ranks store. A tensor that aliases the
    arena keeps the save alive, and with it the memory.
    """

    def __init__(self, save: Save, who: Who, lease: Lease, places: dict[MetadataIndex, Place], document: Place,
                 left: frozenset[MetadataIndex], layout: int) -> None:
        self.save, self.who, self.lease = save, who, lease
        self.places, self.document, self.left, self.layout = places, document, left, layout
        self.deduplicated: frozenset[MetadataIndex] = frozenset()

    def complete(self, plan: SavePlan, planner: SavePlanner) -> list[WriteResult]:
        """Takes the final plan: tensors are there already, byte streams and the document are written, the save is sealed.
        deduplicated then says what is stored by this rank though the plan gives it to another."""
        document, results = Document(), []
        for item in plan.items:
            results.append(WriteResult(item.index, self._take(item, plan, planner, document), None))
        mine = {item.index for item in plan.items}
        self.deduplicated = frozenset(index for index in self.places if index not in mine)
        for index in self.deduplicated:
            self._fill(self.places[index])
        _write(self.document, document.encode(), b" ", _document.PREFIX)
        self.save.seal()
        return results

    def _take(self, item: WriteItem, plan: SavePlan, planner: SavePlanner, document: Document) -> int:
        name, data = item.index.fqn, planner.resolve_data(item)
        place = self.places.get(item.index)
        if place is None:
            raise InvalidError(f'the plan wants "{name}" {_at(item.index)}to be stored by this rank, which did not stage it: {_ADVICE}')
        if item.type == WriteItemType.BYTE_IO:
            assert isinstance(data, io.BytesIO)
            content, place.value = data.getvalue(), None
            note_bytes(item, plan, document, len(content))
            _write(place, content, b"\0", name)
            return len(content)
        note_tensor(item, data, plan, document)
        if place.bytes and (data.data_ptr() != place.address or not data.is_contiguous()):
            raise InvalidError(f'the planner gives another tensor for "{name}" than the one that was staged: {_ADVICE}')
        return place.bytes

    @staticmethod
    def _fill(place: Place) -> None:
        """A stream that another rank stores too: this rank's own value, that what an earlier save left there is not saved."""
        if place.value is not None:
            content = serialised(place.value[0]).getvalue()
            _write(place, content if len(content) <= place.bytes else b"", b"\0", "")

    def close(self) -> None:
        """Gives the step up if it is not sealed."""
        self.save.close()
        self.lease.close()


def _at(index: MetadataIndex) -> str:
    return f"at {list(index.offset)} " if index.offset else ""


def _write(place: Place, content: bytes, fill: bytes, name: str) -> None:
    if len(content) > place.bytes:
        raise InvalidError(f'"{name}" takes {len(content)} bytes, where {place.bytes} were reserved for it: {_ADVICE}')
    if place.bytes:
        ctypes.memmove(place.address, content.ljust(place.bytes, fill), place.bytes)


def room_of(value: Any) -> int:
    """Bytes to reserve for what torch.save() will make of a value: exact for small things is dear, so they get plenty."""
    if value is None or isinstance(value, (bool, int, float)):
        return 2048
    if isinstance(value, str):
        return 2048 + 4 * -(-len(value) // 128) * 128
    length = len(serialised(value).getvalue())
    return -(-(length + 256) // 512) * 512


def meta_like(tensor: torch.Tensor) -> torch.Tensor:
    """Of the same kind, without values."""
    return torch.empty(tuple(tensor.shape), dtype=tensor.dtype, device="meta")
