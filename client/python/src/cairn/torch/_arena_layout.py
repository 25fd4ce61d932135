# SPDX-License-Identifier: Apache-2.0
"""How a state dict is laid out in the arena before there is a plan: made once for a state dict that is built alike, save after
save, and then only addresses change."""
from __future__ import annotations

import dataclasses
from typing import Any, Optional, Union

import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType
from torch.distributed.checkpoint.utils import find_state_dict_object
from torch.distributed.tensor import DTensor

from .. import _cuda, _lib
from .._torch import check, stores
from ..table import Table
from . import _document, _memory
from ._contents import serialised
from ._document import Document, Path
from ._plan import check_name, note_bytes, note_tensor

_PLAIN = frozenset((bool, int, float, str, type(None)))
_NUMBERS = frozenset((bool, int, float, type(None)))


@dataclasses.dataclass
class Piece:
    """An item that this rank stages. number: in the table, None where it has no bytes. bytes: its room. here: whether libcairn
    copies it; else it is copied by torch. lazy: whether it has memory of its own only after a conversion."""

    item: WriteItem
    number: Optional[int]
    bytes: int
    is_stream: bool
    dtype: Optional[torch.dtype] = None
    shape: tuple[int, ...] = ()
    here: bool = True
    lazy: bool = False


class ArenaLayout:
    """Of one flat state dict: what this rank stages, what it leaves to others, and the table.

    learned: what others stored the last time. direct: whether libcairn reads the memory of devices. pieces: in the order of the
    plan; at: their numbers by index. left: what this rank does not stage, with placeholders on the meta device. need: bytes by
    dtype, for the arena. devices: those that libcairn reads.
    """

    def __init__(
        self, state_dict: dict[str, Any], learned: frozenset[MetadataIndex], rank: int, document_room: Any, direct: bool
    ) -> None:
        planner = DefaultSavePlanner()
        planner.set_up_planner(state_dict, None, False)
        self.flat: dict[str, Any] = planner.state_dict  # of this stage; the caller takes it
        self.mappings: dict[str, Path] = planner.mappings
        self.plan = planner.create_local_plan()
        self.learned, self.direct = learned, direct
        self.left = frozenset(
            item.index for item in self.plan.items if item.index in learned or not _is_ours(item, self.flat)
        )
        self.known = [_Known(name, value) for name, value in self.flat.items()]
        self.digest = _digest(self.plan)
        self.table = Table()
        made = [self._piece(item) for item in self.plan.items if item.index not in self.left]
        self.pieces = [piece for piece, _ in made]
        rows = self._add_rows(made)
        self.at = {piece.item.index: i for i, piece in enumerate(self.pieces)}
        room = document_room(self._document_length())
        rows.append(_memory.bytes_row(_document.name_of(rank), b"", room))
        self.document, self.document_bytes = rows[-1].add_to(self.table, by_address=False), room
        self.need = _memory.sizes_of(rows)
        self.devices = sorted({row.device for piece, row in made if piece.here} - {_lib.HOST})
        self.tensors = _tensors_by_name(self.plan)
        self.placeholders = {
            item.index: _meta_like(find_state_dict_object(self.flat, item.index)) for item in self.plan.items
            if item.index in self.left and item.type != WriteItemType.BYTE_IO
        }

    def fits(self, flat: dict[str, Any], learned: frozenset[MetadataIndex], direct: bool) -> bool:
        """Whether this flat state dict is built as the one that the layout was made for."""
        if len(flat) != len(self.known) or learned != self.learned or direct != self.direct:
            return False
        return all(known.fits(name, value) for known, (name, value) in zip(self.known, flat.items()))

    def set_addresses(self, flat: dict[str, Any]) -> None:
        """Lets the table point to the tensors of this state dict."""
        addresses, keep = [0] * len(self.table), []
        for piece in self.pieces:
            if piece.number is not None and piece.here:
                tensor = local_of(flat, piece.item)
                if piece.lazy:
                    tensor = tensor.resolve_conj().resolve_neg()
                keep.append(tensor)
                addresses[piece.number] = tensor.data_ptr()
        self.table.set_addresses(addresses, keep)

    def memory_on_devices(self) -> list[Any]:
        """Owners of what devices copy when the table has been staged."""
        return _cuda.memory_of(t for t in self.table.kept() if _cuda.device_of(t)) if self.devices else []

    def forget(self) -> None:
        """Lets go of the tensors."""
        self.table.set_addresses([0] * len(self.table))
        self.flat = {}

    def _piece(self, item: WriteItem) -> tuple[Piece, _memory.Row]:
        """With its row, which is in no table yet."""
        name = check_name(item.index.fqn)
        if item.type == WriteItemType.BYTE_IO:
            row = _memory.bytes_row(name, b"", room_of(self.flat[name]))
            return Piece(item, None, row.bytes, True, here=False), row
        source = find_state_dict_object(self.flat, item.index).detach()
        check(source, f'tensor "{name}"')
        lazy = source.is_conj() or source.is_neg()
        device = _cuda.device_of(source)
        here = device is not None and (self.direct or device == _lib.HOST)
        tensor = source.resolve_conj().resolve_neg() if lazy and here else source
        shape, offset = note_tensor(item, tensor, SavePlan([]), Document())
        row = _memory.row_of(name, tensor, shape, offset)
        return Piece(item, None, row.bytes, False, source.dtype, tuple(source.shape), here, lazy), row

    def _add_rows(self, made: list[tuple[Piece, _memory.Row]]) -> list[_memory.Row]:
        """To the table, and their numbers to the pieces. A rank may have nothing of a tensor."""
        wanted = [(piece, row) for piece, row in made if piece.is_stream or row.bytes or 0 in row.shape]
        for piece, row in sorted(wanted, key=lambda one: not one[0].here or one[1].is_on_host()):
            piece.number = row.add_to(self.table, by_address=piece.here)
        return [row for _, row in wanted]

    def _document_length(self) -> int:
        """Of the document of a plan that gives everything to this rank."""
        document = Document()
        for item in self.plan.items:
            if item.type == WriteItemType.BYTE_IO:
                note_bytes(item, self.plan, document, 10**9)
            else:
                note_tensor(item, find_state_dict_object(self.flat, item.index), self.plan, document)
        return len(document.encode())


class _Known:
    """What was seen of a value, as far as the layout depends on it."""

    __slots__ = ("name", "kind", "seen")

    def __init__(self, name: str, value: Any) -> None:
        self.name, self.kind, self.seen = name, type(value), _seen(value)

    def fits(self, name: str, value: Any) -> bool:
        if name != self.name or type(value) is not self.kind:
            return False
        if isinstance(value, torch.Tensor):
            return self.kind is not ShardedTensor and _seen(value) == self.seen
        return room_of(value) <= self.seen  # type: ignore[operator]


def _seen(value: Any) -> Union[int, tuple[Any, ...]]:
    if not isinstance(value, torch.Tensor):
        return room_of(value)
    if isinstance(value, ShardedTensor):
        return ()
    if isinstance(value, DTensor):
        return (value._spec, *_memory_of(value._local_tensor))
    return _memory_of(value)


def _memory_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.shape, tensor.stride(), tensor.device, tensor.is_conj(), tensor.is_neg()


def _is_ours(item: WriteItem, flat: dict[str, Any]) -> bool:
    """False for a replica of a DTensor that another rank stores."""
    value = flat[item.index.fqn]
    return not isinstance(value, DTensor) or stores(value, item.index.fqn)


def local_of(flat: dict[str, Any], item: WriteItem) -> torch.Tensor:
    """This rank's memory of an item."""
    value = flat[item.index.fqn]
    if isinstance(value, DTensor):
        return value._local_tensor
    return value if not isinstance(value, ShardedTensor) else find_state_dict_object(flat, item.index)


def room_of(value: Any) -> int:
    """Bytes to reserve for what torch.save() will make of a value; where that is quickly said, with plenty of room."""
    kind = type(value)
    if kind in _NUMBERS:
        return 2048
    if kind is str:
        return 2048 + 4 * -(-len(value) // 128) * 128
    if kind in (list, tuple) and _NUMBERS.issuperset(map(type, value)):
        return 2048 + 16 * -(-len(value) // 32) * 32
    length = len(serialised(value).getvalue())
    return -(-(length + 256) // 512) * 512


def is_plain(value: Any) -> bool:
    """Whether a value cannot change and needs no copy."""
    return type(value) in _PLAIN


def _tensors_by_name(plan: SavePlan) -> dict[str, list[WriteItem]]:
    items: dict[str, list[WriteItem]] = {}
    for item in plan.items:
        if item.type != WriteItemType.BYTE_IO:
            items.setdefault(item.index.fqn, []).append(item)
    return items


def _meta_like(tensor: torch.Tensor) -> torch.Tensor:
    """Of the same kind, without values."""
    return torch.empty(tuple(tensor.shape), dtype=tensor.dtype, device="meta")


def _digest(plan: SavePlan) -> int:
    """Equal for state dicts that give the same items, in this process."""
    return hash(tuple(
        (item.index.fqn, item.index.offset, item.tensor_data and (item.tensor_data.size, item.tensor_data.properties.dtype))
        for item in plan.items
    ))
