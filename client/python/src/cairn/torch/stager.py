# SPDX-License-Identifier: Apache-2.0
"""AsyncStager: dcp.async_save() without a copy besides the one into the arena.

    stage()        room in the arena, libcairn copies the tensors there, and the state dict comes back with tensors that
                   alias the arena; from here on training may go on
    (background)   the planner plans with those tensors; StorageWriter.write_data() finds that they are where they belong,
                   writes byte streams and its document, and seals; finish() waits for the commit

What is stored by whom. The arena is laid out before there is a plan, so a rank stages what it may have to store:
- of a DTensor's replicas one stages, chosen by the name, and only that one is planned for;
- of plain tensors and values that several ranks hold under one name, the plan chooses one rank. The first save of a state
  dict is staged by all of them; from then on, as long as the state dict is built alike, each rank stages what the plan gave
  it the last time. The coordinator checks that what a rank leaves out is planned on another, and fails the save if not.
What is left out appears in the staged state dict on the meta device: a planner that reads it nevertheless gets an error.
"""
from __future__ import annotations

import copy
import dataclasses
from typing import Any, Optional

import torch
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
from torch.distributed.checkpoint._nested_dict import unflatten_state_dict
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.utils import find_state_dict_object
from torch.distributed.remote_device import _remote_device
from torch.distributed.tensor import DTensor

from .._torch import check, stores
from ..errors import InvalidError
from ..session import Save
from ..table import Table
from . import _document, _memory, _sessions
from ._document import Document
from ._memory import Row
from ._plan import check_name, note_bytes, note_tensor
from ._staged import Place, Staged, meta_like, room_of
from .writer import StorageWriter

StateDict = dict[str, Any]


@dataclasses.dataclass
class _Piece:
    """An item that this rank stages: its row, and its number in the table (None: it has no bytes)."""

    item: WriteItem
    row: Row
    number: Optional[int] = None


class AsyncStager:
    """Stages state dicts for a StorageWriter; meets torch's AsyncStager protocol.

        stager = AsyncStager(writer)
        dcp.async_save(state, storage_writer=writer.at(step), async_stager=stager)

    The writer has to know the step before: async_save() tells its checkpoint_id only after staging. A writer that does not
    know it makes stage() copy to memory of its own, as torch's stager does. For dcp.async_save in thread mode: memory of the
    arena cannot go to another process, pickling the writer while something is staged is an error.

    stage() returns when the copy is made. One save at a time: staging anew while an earlier one has not been written gives
    that one up. Keep what stage() returns no longer than the save takes. close() gives up what is staged.
    """

    _synchronize_after_execute = False

    def __init__(self, writer: StorageWriter) -> None:
        self._writer = writer
        self._plain: Optional[DefaultStager] = None

    @property
    def should_synchronize_after_execute(self) -> bool:
        """False: stage() has copied all when it returns."""
        return self._synchronize_after_execute

    def synchronize_staging(self) -> None:
        """Nothing to wait for."""

    def stage(self, state_dict: StateDict, **_: Any) -> StateDict:
        """Copies the tensors into the arena and returns the state dict with tensors that alias it; values that are no
        tensors come as deep copies. Raises BusyError, TooLargeError, ExistsError, FencedError, UnavailableError."""
        if self._writer.step is None:
            self._plain = self._plain or DefaultStager(StagingOptions(False, False, False, False))
            return self._plain.stage(state_dict)  # type: ignore[return-value]
        return _Staging(self._writer, state_dict).run()

    def close(self) -> None:
        """Gives up what is staged but not written, and lets go of buffers. Sessions stay open (close_sessions())."""
        self._writer.take_staged(None)
        if self._plain:
            self._plain.close()
            self._plain = None


class StagingWriter(StorageWriter):
    """A StorageWriter that is its own AsyncStager: dcp.async_save(state, storage_writer=writer.at(step)) needs no other."""

    _synchronize_after_execute = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stager = AsyncStager(self)

    @property
    def should_synchronize_after_execute(self) -> bool:
        """False: stage() has copied all when it returns."""
        return self._synchronize_after_execute

    def stage(self, state_dict: StateDict, **kwargs: Any) -> StateDict:
        """See AsyncStager."""
        return self._stager.stage(state_dict, **kwargs)

    def synchronize_staging(self) -> None:
        """Nothing to wait for."""

    def close(self) -> None:
        """See AsyncStager."""
        self._stager.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_stager": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._stager = AsyncStager(self)


class _Staging:
    """One stage(). The default planner says what the items are, as it will in the background."""

    def __init__(self, writer: StorageWriter, state_dict: StateDict) -> None:
        self.writer, self.who = writer, writer.local_who()
        self.planner = DefaultSavePlanner()
        self.planner.set_up_planner(state_dict, None, False)
        self.flat: StateDict = self.planner.state_dict
        self.plan = self.planner.create_local_plan()
        self.layout = _layout_of(self.plan)

    def run(self) -> StateDict:
        writer = self.writer
        writer.take_staged(None)
        left = self._left(writer.learned(self.layout))
        self.flat = {name: copy.deepcopy(value) if not isinstance(value, torch.Tensor) else value for name, value in self.flat.items()}
        pieces = [self._piece(item) for item in self.plan.items if item.index not in left]
        document = self._document_row()
        rows = [piece.row for piece in pieces if piece.row.bytes or 0 in piece.row.shape]
        lease = writer.borrow(self.who, _sessions.arena_for(_memory.sizes_of([*rows, document])))
        try:
            save, document_number = self._copy(lease.session, pieces, document)
        except BaseException:
            lease.close()
            raise
        places = {p.item.index: self._place(save, p) for p in pieces}
        room = Place(save.place(document_number), document.bytes)
        writer.take_staged(Staged(save, self.who, lease, places, room, left, self.layout))
        return unflatten_state_dict(self._alias(places, left, save), self.planner.mappings)

    def _left(self, learned: frozenset[MetadataIndex]) -> frozenset[MetadataIndex]:
        """What this rank does not stage, since it knows that another does."""
        left = set(learned)
        for item in self.plan.items:
            value = self.flat[item.index.fqn]
            if isinstance(value, DTensor) and not stores(value, item.index.fqn):
                left.add(item.index)
        return frozenset(left)

    def _piece(self, item: WriteItem) -> _Piece:
        name = check_name(item.index.fqn)
        if item.type == WriteItemType.BYTE_IO:
            return _Piece(item, _memory.bytes_row(name, b"", room_of(self.flat[name])))
        tensor = find_state_dict_object(self.flat, item.index).detach()
        if tensor.is_cpu:
            tensor = _memory.on_host(tensor, name)
        else:
            check(tensor, f'tensor "{name}"')
        shape, offset = note_tensor(item, tensor, SavePlan([]), Document())
        return _Piece(item, _memory.row_of(name, tensor, shape, offset))

    def _document_row(self) -> Row:
        """Room for the document of a plan that gives everything to this rank."""
        document = Document()
        for item in self.plan.items:
            if item.type == WriteItemType.BYTE_IO:
                note_bytes(item, self.plan, document, 10**9)
            else:
                note_tensor(item, find_state_dict_object(self.flat, item.index), self.plan, document)
        room = self.writer.room_for_document(len(document.encode()))
        return _memory.bytes_row(_document.name_of(self.who.rank), b"", room)

    def _copy(self, session: Any, pieces: list[_Piece], document: Row) -> tuple[Save, int]:
        """libcairn copies what is in this host's memory; torch what is on a device."""
        table = Table()
        for piece in pieces:
            if piece.row.bytes or 0 in piece.row.shape:
                here = piece.item.type != WriteItemType.BYTE_IO and piece.row.tensor.is_cpu
                piece.number = piece.row.add_to(table, by_address=here)
        number = document.add_to(table, by_address=False)
        assert self.writer.step is not None
        save = session.stage(self.writer.step, table, on_busy=self.writer.on_busy, timeout=self.writer.timeout)
        return save, number

    def _place(self, save: Save, piece: _Piece) -> Place:
        if piece.number is None or not piece.row.bytes:
            return Place(0, 0)
        is_stream = piece.item.type == WriteItemType.BYTE_IO
        return Place(save.place(piece.number), piece.row.bytes, (self.flat[piece.item.index.fqn],) if is_stream else None)

    # ---- the state dict that comes back ----

    def _alias(self, places: dict[MetadataIndex, Place], left: frozenset[MetadataIndex], save: Save) -> StateDict:
        items: dict[str, list[WriteItem]] = {}
        for item in self.plan.items:
            if item.type != WriteItemType.BYTE_IO:
                items.setdefault(item.index.fqn, []).append(item)
        staged = dict(self.flat)
        for name, of_it in items.items():
            tensors = [self._over(item, places, left, save) for item in of_it]
            staged[name] = _rewrap(name, self.flat[name], of_it, tensors)
        return staged

    def _over(self, item: WriteItem, places: dict[MetadataIndex, Place], left: frozenset[MetadataIndex], save: Save) -> torch.Tensor:
        source = find_state_dict_object(self.flat, item.index).detach()
        if item.index in left:
            return meta_like(source)
        made = _memory.over(places[item.index].address, source.dtype, source.shape, save)
        if not source.is_cpu:
            made.copy_(source)
        return made


def _rewrap(name: str, original: torch.Tensor, items: list[WriteItem], tensors: list[torch.Tensor]) -> torch.Tensor:
    """The staged tensors as what the original was."""
    if isinstance(original, DTensor):
        if len(tensors) != 1 or hasattr(original._local_tensor, "__create_write_items__"):
            raise InvalidError(f'tensor "{name}" is a DTensor of several local shards: save it without an AsyncStager')
        return DTensor(tensors[0], original._spec, requires_grad=False)
    if isinstance(original, ShardedTensor):
        return _rewrap_shards(original, items, tensors)
    return tensors[0]


def _rewrap_shards(original: ShardedTensor, items: list[WriteItem], tensors: list[torch.Tensor]) -> ShardedTensor:
    metadata = copy.deepcopy(original.metadata())
    metadata.tensor_properties.pin_memory = False
    for shard in metadata.shards_metadata:
        shard.placement = _remote_device(f"rank:{shard.placement.rank()}/cpu")
    by_offset = {tuple(item.index.offset or ()): tensor for item, tensor in zip(items, tensors)}
    shards = [Shard(by_offset[tuple(m.shard_offsets)], m) for m in metadata.shards_metadata if tuple(m.shard_offsets) in by_offset]
    return ShardedTensor._init_from_local_shards_and_global_metadata(shards, metadata, process_group=original._process_group)


def _layout_of(plan: SavePlan) -> int:
    """Equal for state dicts that are built alike, in this process."""
    return hash(tuple(
        (item.index.fqn, item.index.offset, item.tensor_data and (tuple(item.tensor_data.size), item.tensor_data.properties.dtype))
        for item in plan.items
    ))
