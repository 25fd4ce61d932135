# SPDX-License-Identifier: Apache-2.0
"""A save that is staged but not sealed: its tensors are in the arena, the plan that says what else belongs to it is not
there yet."""
from __future__ import annotations

import ctypes
import io
from typing import Any

from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult

from ..errors import InvalidError
from ..session import Save
from . import _document
from ._arena_layout import ArenaLayout
from ._contents import serialised
from ._document import Document
from ._plan import note_bytes, note_tensor
from ._sessions import Lease, Who

_ADVICE = "save through a StorageWriter without an AsyncStager, or with the default planner"


class Staged:
    """The save, and where each piece of the layout lies in the arena (addresses: 0 for one without bytes), and the document.

    values: of byte streams, by name. memory: what owns the tensors that devices copy still. A tensor that aliases the arena
    keeps the save alive, and with it the arena's memory.
    """

    def __init__(
        self, save: Save, who: Who, lease: Lease, layout: ArenaLayout, values: dict[str, Any], memory: list[Any]
    ) -> None:
        self.save, self.who, self.lease, self.layout, self.values = save, who, lease, layout, values
        self.memory = memory
        self.left = layout.left
        self.addresses = [save.place(p.number) if p.number is not None and p.bytes else 0 for p in layout.pieces]
        self.document = save.place(layout.document)
        self.deduplicated: frozenset[MetadataIndex] = frozenset()

    def complete(self, plan: SavePlan, planner: SavePlanner) -> list[WriteResult]:
        """Takes the final plan: tensors are there already, byte streams and the document are written, the save is sealed.
        deduplicated then says what is stored by this rank though the plan gives it to another."""
        document, results = Document(), []
        for item in plan.items:
            results.append(WriteResult(item.index, self._take(item, plan, planner, document), None))
        mine = {item.index for item in plan.items}
        self.deduplicated = frozenset(index for index in self.layout.at if index not in mine)
        for index in self.deduplicated:
            self._fill(self.layout.at[index])
        text = document.encode()
        _write(self.document, self.layout.document_bytes, text, b" ", _document.PREFIX)
        self.save.seal()
        return results

    def _take(self, item: WriteItem, plan: SavePlan, planner: SavePlanner, document: Document) -> int:
        name, data, number = item.index.fqn, planner.resolve_data(item), self.layout.at.get(item.index)
        if number is None:
            at = f"at {list(item.index.offset)} " if item.index.offset else ""
            raise InvalidError(f'the plan wants "{name}" {at}to be stored by this rank, which did not stage it: {_ADVICE}')
        address, room = self.addresses[number], self.layout.pieces[number].bytes
        if item.type == WriteItemType.BYTE_IO:
            if not isinstance(data, io.BytesIO):
                raise InvalidError(f'the planner gives a {type(data).__name__} for "{name}", where a BytesIO is wanted')
            content = data.getvalue()
            note_bytes(item, plan, document, len(content))
            _write(address, room, content, b"\0", name)
            return len(content)
        note_tensor(item, data, plan, document)
        if room and (data.data_ptr() != address or not data.is_contiguous()):
            raise InvalidError(f'the planner gives another tensor for "{name}" than the one that was staged: {_ADVICE}')
        return room

    def _fill(self, number: int) -> None:
        """A stream that another rank stores too: this rank's own value, that what an earlier save left there is not saved."""
        piece = self.layout.pieces[number]
        if piece.is_stream:
            content = serialised(self.values[piece.item.index.fqn]).getvalue()
            _write(self.addresses[number], piece.bytes, content if len(content) <= piece.bytes else b"", b"\0", "")

    def close(self) -> None:
        """Gives the step up if it is not sealed."""
        self.save.close()
        self.lease.close()


def _write(address: int, room: int, content: bytes, fill: bytes, name: str) -> None:
    if len(content) > room:
        raise InvalidError(f'"{name}" takes {len(content)} bytes, where {room} were reserved for it: {_ADVICE}')
    if room:
        ctypes.memmove(address, content.ljust(room, fill), room)
