# SPDX-License-Identifier: Apache-2.0
"""StorageReader: torch.distributed.checkpoint loads from Cairn, into any number of ranks and any sharding.

All that the plan wants is asked for by one restore, by slice, straight into the memory that the planner names. What cannot
be written there directly (another dtype, a device that libcairn does not reach, memory that overlaps itself) goes through a tensor of its own.
"""
from __future__ import annotations

import dataclasses
import io
import os
import pickle
from collections.abc import Mapping
from typing import Any, Optional, Union

import torch
from torch.distributed.checkpoint import storage
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from .. import _cuda, _lib
from .._devices import Devices
from .._torch import bytes_strides
from ..errors import Error, InvalidError, NotFoundError
from ..session import Restore, Session
from . import _ids, _sessions
from ._contents import Contents, Stream, Tensor, serialised
from ._memory import content_of, is_writable_in_place
from ._sessions import Lease, Settings, Who
from .writer import done


@dataclasses.dataclass
class _Wanted:
    """An item of the plan that is being read: into what, and where the planner wants it in the end."""

    item: ReadItem
    target: torch.Tensor
    buffer: Optional[torch.Tensor] = None
    stream: Optional[Stream] = None


class StorageReader(storage.StorageReader):
    """Reads checkpoints of a job: those that StorageWriter wrote, and those of cairn.Checkpointer.

    job, step: as for StorageWriter; without a step the newest checkpoint is read, in a world of several ranks the one that all
    ranks of this start resume from. rank, world_size, socket, start_id, session: as for StorageWriter; no rank is needed
    where the step is given, a rank's session is used if this process has one.
    timeout: seconds for the whole load.
    allow_pickle: values that are no tensors were pickled by torch.save(). By default only those are given back that
    torch.load(weights_only=True) reads; True hands the streams to the planner as they are, which runs what they contain.
    rename: names of the state dict -> names in the checkpoint; an entry holds for everything below it too.

    Use one reader for one load at a time. After an error the contents of the targets are undefined.
    """

    def __init__(
        self,
        job: Optional[str] = None,
        step: Optional[int] = None,
        *,
        rank: Optional[int] = None,
        world_size: Optional[int] = None,
        socket: Optional[str] = None,
        start_id: Optional[str] = None,
        session: Optional[Session] = None,
        timeout: float = 600.0,
        allow_pickle: bool = False,
        rename: Optional[Mapping[str, str]] = None,
    ) -> None:
        super().__init__()
        self.job, self.step = job, None if step is None else _ids.check_step(step)
        self.timeout, self.allow_pickle, self.rename = timeout, allow_pickle, dict(rename or {})
        self._told = _sessions.both_or_none(rank, world_size)
        self._settings = Settings("auto", socket, start_id, min(timeout, 30.0))
        self._session = session
        self._devices = Devices(job or "?", False, "none", 0)
        self._targets: set[int] = set()
        self._lease: Optional[Lease] = None
        self._restore: Optional[Restore] = None
        self._contents: Optional[Contents] = None

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Union[int, str, "os.PathLike[str]"]) -> bool:
        """Whether the id names a step."""
        return _ids.is_valid(checkpoint_id)

    @property
    def checkpoint_id(self) -> Optional[str]:
        """ "cairn://JOB/STEP", if it is known."""
        return _ids.url(self.job, self.step)

    @property
    def load_id(self) -> Optional[str]:
        """What names the load: the checkpoint."""
        return _ids.url(self.job, self.step)

    def reset(self, checkpoint_id: Union[int, str, "os.PathLike[str]", None] = None) -> None:
        """A new load begins; the id, if there is one, says which step."""
        self._end()
        if checkpoint_id is not None:
            job, self.step = _ids.parse(checkpoint_id)
            self.job = job or self.job

    # ---- the sequence of a load ----

    def read_metadata(self) -> Metadata:
        """What the checkpoint holds. Raises NotFoundError, CorruptError, UnavailableError."""
        metadata = self._open().metadata()
        assert self._restore is not None
        saved = _ids.url(self.job, self._restore.step)
        metadata.storage_meta = StorageMeta(checkpoint_id=self.checkpoint_id or saved, save_id=saved, load_id=self.load_id)
        return metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to do."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Nothing to add."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Nothing to add: every rank reads what it needs, and its node reads each byte once."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Reads all items by one restore."""
        contents = self._open()
        restore = self._restore
        assert restore is not None
        try:
            self._targets = set()
            wanted = [self._ask(restore, contents, item, planner) for item in plan.items]
            _cuda.synchronize(self._targets)  # what still reads or writes the targets
            restore.run(self.timeout)
        except Error as e:
            raise type(e)(f"load step {restore.step} of job {self.job}: {e}", e.sys_errno) from e
        finally:
            self._end()
        for one in wanted:
            self._deliver(one, planner)
        return done(None)

    # ---- parts of it ----

    def _open(self) -> Contents:
        if self._contents is not None:
            return self._contents
        if self.job is None:
            raise InvalidError('which job? Give StorageReader(job=...), or checkpoint_id="cairn://JOB/STEP"')
        who = _sessions.local_who(self.job, self._told)
        try:
            self._restore = self._find(self._borrow(who))
            self._contents = Contents(self._restore, who.rank, self.timeout, self.allow_pickle)
            self._contents.rename(self.rename)
        except BaseException:
            self._end()
            raise
        return self._contents

    def _find(self, session: Session) -> Restore:
        latest = self._lease.latest if self._lease else session.latest
        step = self.step if self.step is not None else latest()
        if step is None:
            raise NotFoundError(f"job {self.job} has no checkpoint yet: start from scratch")
        return session.restore(step, self.timeout)

    def _borrow(self, who: Who) -> Session:
        """A rank's session where there is one or one is needed to agree with the other ranks on the newest step."""
        if self._session is not None:
            return self._session
        if _sessions.has_rank(who, self._settings) or (self.step is None and who.world_size > 1):
            self._lease = _sessions.lease(who, self._settings, 0)
            return self._lease.session
        return _sessions.observer(who.job, self._settings)

    def _ask(self, restore: Restore, contents: Contents, item: ReadItem, planner: LoadPlanner) -> _Wanted:
        name = item.storage_index.fqn
        if item.type == LoadItemType.BYTE_IO:
            return self._ask_stream(restore, contents, item)
        tensor = contents.tensors.get(name)
        if tensor is None:
            raise NotFoundError(f'the plan wants tensor "{name}", which the checkpoint does not have')
        target = planner.resolve_tensor(item).detach()
        if tuple(target.shape) != tuple(item.lengths):
            raise InvalidError(f'the planner gives {list(target.shape)} for "{name}", where the plan has {list(item.lengths)}')
        buffer = target
        if target.dtype != tensor.dtype or not self._can_write(target, restore.session):
            buffer = torch.empty(tuple(item.lengths), dtype=tensor.dtype)
        if target.numel():
            _ask_tensor(restore, tensor, item, buffer)
        return _Wanted(item, target, None if buffer is target else buffer)

    def _can_write(self, target: torch.Tensor, session: Session) -> bool:
        if not is_writable_in_place(target):
            return False
        device = _cuda.device_of(target)
        if device and not self._devices.use_anew(session, [device]):
            return False
        self._targets |= {device} - {_lib.HOST}
        return True

    def _ask_stream(self, restore: Restore, contents: Contents, item: ReadItem) -> _Wanted:
        stream = contents.streams.get(item.storage_index.fqn)
        if stream is None:
            raise NotFoundError(f'the plan wants bytes "{item.storage_index.fqn}", which the checkpoint does not have')
        room = torch.empty(stream.slice.bytes if stream.slice else 0, dtype=torch.uint8)
        if stream.slice:
            restore.add_slice(stream.slice.index, room.data_ptr(), keep=room)
        return _Wanted(item, room, stream=stream)

    def _deliver(self, one: _Wanted, planner: LoadPlanner) -> None:
        if one.stream is None:
            if one.buffer is not None:
                one.target.copy_(one.buffer)
            planner.commit_tensor(one.item, one.target)
        elif one.stream.slice is None:
            planner.load_bytes(one.item, serialised(one.stream.value))
        else:
            data = io.BytesIO(content_of(one.target)[: one.stream.length])
            planner.load_bytes(one.item, self._checked(data, one.item, planner))

    def _checked(self, data: io.BytesIO, item: ReadItem, planner: LoadPlanner) -> io.BytesIO:
        """What may be given to a planner that unpickles it: only what torch reads without running code, written anew. A
        planner with a load_bytes() of its own has its own rules."""
        if self.allow_pickle or type(planner).load_bytes is not DefaultLoadPlanner.load_bytes:
            return data
        try:
            return serialised(torch.load(data, weights_only=True))
        except (pickle.UnpicklingError, RuntimeError) as e:
            reason = str(e).splitlines()[0] if str(e) else type(e).__name__
            raise InvalidError(
                f'"{item.storage_index.fqn}" of step {self.step} cannot be read without unpickling what may run code ({reason}): '
                f"give StorageReader(allow_pickle=True) if you trust who saved it"
            ) from e

    def _end(self) -> None:
        restore, lease = self._restore, self._lease
        self._restore = self._lease = self._contents = None
        if restore:
            restore.close()
        if lease:
            lease.close()


def _ask_tensor(restore: Restore, tensor: Tensor, item: ReadItem, buffer: torch.Tensor) -> None:
    origin = item.storage_index.offset or (0,) * buffer.ndim
    extra = tensor.shape[len(tensor.shape) - tensor.extra :]
    strides = bytes_strides(buffer)
    restore.add(
        tensor.name, tensor.stored_dtype, tensor.shape, buffer.data_ptr(),
        offset=(*(a + b for a, b in zip(origin, item.storage_offsets)), *(0 for _ in extra)),
        length=(*item.lengths, *extra),
        strides=None if strides is None else (*strides, *(1 for _ in extra)),
        device=_cuda.device_of(buffer) or _lib.HOST,
        keep=buffer,
    )
