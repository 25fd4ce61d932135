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
from typing import Any, Optional

import torch
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
from torch.distributed.checkpoint._nested_dict import flatten_state_dict, unflatten_state_dict
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.remote_device import _remote_device
from torch.distributed.tensor import DTensor

from .. import _cuda
from ..errors import InvalidError
from ..session import Save, Session
from . import _memory, _sessions
from ._arena_layout import ArenaLayout, is_plain, local_of
from ._staged import Staged
from .writer import StorageWriter

StateDict = dict[str, Any]


class AsyncStager:
    """Stages state dicts for a StorageWriter; meets torch's AsyncStager protocol.

        stager = AsyncStager(writer)
        dcp.async_save(state, storage_writer=writer.at(step), async_stager=stager)

    The writer has to know the step before: async_save() tells its checkpoint_id only after staging. A writer that does not
    know it makes stage() copy to memory of its own, as torch's stager does. For dcp.async_save in thread mode: memory of the
    arena cannot go to another process, pickling the writer while something is staged is an error.

    stage() returns when the copy is made; that of tensors on CUDA devices is made behind it, and what is put into the current
    streams afterwards waits for it, on the device. So what stage() returns has their values later: once the save is written.
    One save at a time: staging anew while an earlier one has not been written gives
    that one up. Keep what stage() returns no longer than the save takes. close() gives up what is staged.
    """

    _synchronize_after_execute = False

    def __init__(self, writer: StorageWriter) -> None:
        self._writer = writer
        self._plain: Optional[DefaultStager] = None

    @property
    def should_synchronize_after_execute(self) -> bool:
        """False: what comes behind stage() may change the tensors."""
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
        """False: what comes behind stage() may change the tensors."""
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
    """One stage()."""

    def __init__(self, writer: StorageWriter, state_dict: StateDict) -> None:
        self.writer, self.who = writer, writer.local_who()
        writer.take_staged(None)
        self.state_dict = state_dict
        self.flat, self.layout = self._layout_for(state_dict)

    def _layout_for(self, state_dict: StateDict) -> tuple[StateDict, ArenaLayout]:
        """The flat state dict, and the layout of the save before where it fits."""
        layout, direct = self.writer.layout, self.writer.reaches_devices
        if layout is not None:
            flat, _ = flatten_state_dict(state_dict)
            if layout.fits(flat, self.writer.learned(layout.digest), direct):
                layout.set_addresses(flat)
                return flat, layout
        layout = ArenaLayout(state_dict, frozenset(), self.who.rank, self.writer.room_for_document, direct)
        learned = self.writer.learned(layout.digest)
        if learned:
            layout = ArenaLayout(state_dict, learned, self.who.rank, self.writer.room_for_document, direct)
        self.writer.layout = layout
        return layout.flat, layout

    def run(self) -> StateDict:
        writer = self.writer
        lease = writer.borrow(self.who, _sessions.arena_for(self.layout.need))
        save = None
        try:
            if self.layout.devices and not writer.use_devices(lease.session, self.layout.devices):
                self.flat, self.layout = self._layout_for(self.state_dict)
            memory = self.layout.memory_on_devices()
            save = self._stage(lease.session)
            staged = Staged(save, self.who, lease, self.layout, self._values(), memory)
            made = {**staged.values, **self._alias(staged)}
            found = unflatten_state_dict({name: made[name] for name in self.flat}, self.layout.mappings)
        except BaseException:  # also of values that cannot be copied: the step is given up at once
            if save is not None:
                save.close()
            lease.close()
            raise
        finally:
            self.layout.forget()
        writer.take_staged(staged)
        return found

    def _values(self) -> StateDict:
        return {name: _copy_of(value) for name, value in self.flat.items() if not isinstance(value, torch.Tensor)}

    def _stage(self, session: Session) -> Save:
        """Behind it the current streams' later work waits for what devices copy."""
        writer, layout = self.writer, self.layout
        assert writer.step is not None
        streams = {device: _cuda.stream_of(device) for device in layout.devices}
        try:
            save = session.stage(writer.step, layout.table, on_busy=writer.on_busy, timeout=writer.timeout, streams=streams)
        except InvalidError as e:
            writer.note_refusal(e)
            raise
        try:
            for device, stream in streams.items():
                session.fence(device, stream)
        except BaseException:
            save.close()
            raise
        return save

    def _alias(self, staged: Staged) -> StateDict:
        """The tensors of the state dict over the arena's memory."""
        made = dict(self.layout.placeholders)
        for piece, address in zip(self.layout.pieces, staged.addresses):
            if piece.dtype is None:
                continue
            tensor = made[piece.item.index] = _memory.over(address, piece.dtype, piece.shape, staged.save)
            if not piece.here:
                tensor.copy_(local_of(self.flat, piece.item))
        return {
            name: _rewrap(name, self.flat[name], items, [made[item.index] for item in items])
            for name, items in self.layout.tensors.items()
        }


def _copy_of(value: Any) -> Any:
    return value if is_plain(value) else copy.deepcopy(value)


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
    ours = [shard for shard in metadata.shards_metadata if tuple(shard.shard_offsets) in by_offset]
    shards = [Shard(by_offset[tuple(shard.shard_offsets)], shard) for shard in ours]
    return ShardedTensor._init_from_local_shards_and_global_metadata(
        shards, metadata, process_group=original._process_group
    )
