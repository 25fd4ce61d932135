# SPDX-License-Identifier: Apache-2.0
"""StorageWriter: torch.distributed.checkpoint saves into Cairn.

What a save does here: one table of all items that the plan gives to this rank, one call of libcairn that copies them into
the arena, and on the coordinator a wait until the checkpoint of all ranks is committed. Nothing is pickled but what the
planner itself turns into bytes (values that are no tensors).
"""
from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import threading
from typing import Any, Optional, Union

from torch.distributed.checkpoint import storage
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from .. import _cuda, _lib
from .._devices import Devices
from ..errors import Error, InvalidError, TimeoutError
from ..session import Save, Session
from ..table import Table
from . import _document, _ids, _memory, _sessions
from ._arena_layout import ArenaLayout
from ._document import Document
from ._memory import Row
from ._plan import check_name, note_bytes, note_tensor
from ._sessions import Lease, Settings, Who
from ._staged import Staged

# How prepare_global_plan() tells each rank who it is in this save, and prepare_local_plan() the coordinator what a rank
# leaves to others (see stager.py); both in SavePlan.storage_data.
WHO, LEFT = "cairn_who", "cairn_left"

_SWAP = threading.Lock()  # none of the writer's own: writers are pickled


class StorageWriter(storage.StorageWriter):
    """Writes checkpoints of torch.distributed.checkpoint into a job of Cairn.

    job: the job's name. step: which checkpoint, where the checkpoint_id that dcp.save() is given does not say so (a number,
    "cairn://JOB/STEP", or a path whose last number is the step). Each step can be saved once per start of the job.

    rank, world_size: of this process in the job; by default what the save's own process group says, so all ranks of the
    group have to save. Given both, each rank saves for itself (dcp.save(..., no_dist=True)), and the checkpoint is committed
    when all have.
    arena: bytes of shared memory for snapshots, "auto" for as much as the saves turn out to need. socket, start_id,
    copy_threads, track: see cairn.Session. session: one of the caller's to use instead of this module's, say a
    Checkpointer's; it has to be of the rank that saves.
    on_busy: "wait" waits for room in the arena, "fail" raises BusyError at once. timeout: seconds for that wait, and for
    finish() until all ranks' shards are stored.

    Use one writer for one save at a time. Errors are those of cairn.errors; dcp.save() wraps them into its
    CheckpointException where torch.distributed is used.
    """

    def __init__(
        self,
        job: Optional[str] = None,
        step: Optional[int] = None,
        *,
        rank: Optional[int] = None,
        world_size: Optional[int] = None,
        arena: Union[int, str] = "auto",
        socket: Optional[str] = None,
        start_id: Optional[str] = None,
        session: Optional[Session] = None,
        on_busy: str = "wait",
        timeout: float = 600.0,
        copy_threads: int = 1,
        track: bool = False,
    ) -> None:
        super().__init__()
        self.job, self.step = job, None if step is None else _ids.check_step(step)
        self.on_busy, self.timeout = on_busy, timeout
        self._told = _sessions.both_or_none(rank, world_size)
        self._settings = Settings(arena, socket, start_id, min(timeout, 30.0), copy_threads, track)
        self._session = session
        self._devices = Devices(job or "?", False, "none", 0)
        self._collective = self._waits = True
        self._document_room = 0
        self._staged: Optional[Staged] = None
        self._learned: dict[int, frozenset[MetadataIndex]] = {}
        self.layout: Optional[ArenaLayout] = None  # an AsyncStager's, of the save before
        self._forget()

    def _forget(self) -> None:
        """No save is under way."""
        self._save: Optional[Save] = None
        self._lease: Optional[Lease] = None

    # ---- what is saved, and as whom ----

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Union[int, str, "os.PathLike[str]"]) -> bool:
        """Whether the id names a step."""
        return _ids.is_valid(checkpoint_id)

    @property
    def checkpoint_id(self) -> Optional[str]:
        """ "cairn://JOB/STEP" of the save under way or the next one, if it is known."""
        return _ids.url(self.job, self.step)

    @property
    def save_id(self) -> Optional[str]:
        """What names the save; readers of it find it in their metadata."""
        return _ids.url(self.job, self.step)

    def at(self, step: int) -> "StorageWriter":
        """Sets the step of the next save, and returns the writer: dcp.save(state, storage_writer=writer.at(100))."""
        self.step = _ids.check_step(step)
        return self

    def reset(self, checkpoint_id: Union[int, str, "os.PathLike[str]", None] = None) -> None:
        """A new save begins; the id, if there is one, says which step."""
        self._end()
        if checkpoint_id is not None:
            job, self.step = _ids.parse(checkpoint_id)
            self.job = job or self.job

    def _what(self) -> tuple[str, int]:
        if self.job is None:
            raise InvalidError('which job? Give StorageWriter(job=...), or checkpoint_id="cairn://JOB/STEP"')
        if self.step is None:
            raise InvalidError(f"job {self.job}: which step? Give checkpoint_id=STEP to dcp.save(), or StorageWriter(step=...)")
        return self.job, self.step

    def local_who(self) -> Who:
        """Who this rank is, as far as it is known without a plan. Raises InvalidError."""
        return _sessions.local_who(self.job or self._what()[0], self._told)

    def _who(self, plan: SavePlan) -> Who:
        told = (plan.storage_data or {}).get(WHO) if isinstance(plan.storage_data, dict) else None
        if self._told or not self._collective or told is None:
            return self.local_who()
        return Who(self._what()[0], *told)

    # ---- the sequence of a save ----

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Notes how this save is coordinated."""
        self._collective = kwargs.get("use_collectives", True)
        self._waits = is_coordinator or not self._collective

    def storage_meta(self) -> Optional[StorageMeta]:
        """The checkpoint's id, for planners that want it."""
        return StorageMeta(checkpoint_id=self.checkpoint_id, save_id=self.save_id)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Takes out what an AsyncStager has left to other ranks."""
        left = self._staged.left if self._staged and _is_usable(plan) else frozenset()
        if not left:
            return plan
        items = [item for item in plan.items if item.index not in left]
        return dataclasses.replace(plan, items=items, storage_data={LEFT: sorted(left, key=str)})

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Tells each rank its place in this save. Raises InvalidError where all ranks have left something to others."""
        if all(map(_is_usable, plans)):
            _check_left(plans)
        return [
            dataclasses.replace(plan, storage_data={WHO: (rank, len(plans))}) for rank, plan in enumerate(plans)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Copies all items into the arena by one call, those on GPUs from where they are; where an AsyncStager has put them
        there already, seals. When this returns, the tensors may change."""
        self._end()
        (_, step), who = self._what(), self._who(plan)
        staged = self._swap_staged(None)
        results = self._seal(staged, step, who, plan, planner) if staged else self._copy(step, who, plan, planner)
        if not self._waits:
            self._end()
        return done(results)

    def _copy(self, step: int, who: Who, plan: SavePlan, planner: SavePlanner) -> list[WriteResult]:
        rows: list[Row] = []
        try:
            results = self._collect(rows, who, plan, planner)
        except BaseException:
            self._give_up(step, who)
            raise
        self._lease = self.borrow(who, _sessions.arena_for(_memory.sizes_of(rows)))
        session, devices = self._lease.session, _devices_of(rows)
        if devices and not self._devices.use_anew(session, devices):
            rows, devices = [row.on_host() for row in rows], []
        table = Table()
        for row in sorted(rows, key=Row.is_on_host):
            row.add_to(table)
        streams = {device: _cuda.stream_of(device) for device in devices}
        try:
            session.save(step, table, on_busy=self.on_busy, timeout=self.timeout, streams=streams, begun=self._note)
            if devices:  # the tensors may change from then on; dcp.save() waits for the commit anyway
                self._wait_for_copies(step)
        except BaseException as e:
            if isinstance(e, InvalidError):
                self._devices.refused(e)
            self._leave(session, devices, rows)
            raise
        return results

    def _note(self, save: Save) -> None:
        self._save = save

    def _wait_for_copies(self, step: int) -> None:
        assert self._save is not None
        try:
            self._save.wait("snapshot", self.timeout)
        except TimeoutError as e:
            raise TimeoutError(f"{e}. The copies go on, and what is put into the current streams waits for them: step {step} "
                               f"may be committed still, by ranks that all come so far, and cannot be saved again; save the "
                               f"next one") from e

    def _leave(self, session: Session, devices: list[int], memory: Any) -> bool:
        """Of a save that this writer looks after no longer: what has begun goes on, and is the session's (True). Its tensors
        are held and kept as they are until they are copied, or another content than the caller's would be committed."""
        save = self._save
        goes_on = save is not None and save.is_begun and bool(devices)
        if goes_on:
            session.keep(save, memory)
            for device in devices:
                with contextlib.suppress(Error):  # of a device that is lost, which copies nothing either
                    session.fence(device, _cuda.stream_of(device))
        self._end()
        return goes_on

    def _collect(self, rows: list[Row], who: Who, plan: SavePlan, planner: SavePlanner) -> list[WriteResult]:
        """Fills the rows with what the plan gives to this rank, and the document."""
        results, document = [], Document()
        for item in plan.items:
            row = self._row(item, plan, planner, document)
            rows += [row] if row.bytes or 0 in row.shape else []  # a rank may have nothing of a tensor
            results.append(WriteResult(item.index, row.bytes, None))
        rows += self._document_rows(document, who.rank)
        return results

    def _give_up(self, step: int, who: Who) -> None:
        """Tells the other ranks that this step will not come, so that their arenas are free again at once."""
        if who.world_size == 1:
            return
        with contextlib.suppress(Error), self.borrow(who, 0) as lease:
            lease.session.stage(step, Table()).close()

    def _seal(self, staged: Staged, step: int, who: Who, plan: SavePlan, planner: SavePlanner) -> list[WriteResult]:
        if (staged.save.step, staged.who) != (step, who):
            staged.close()
            raise InvalidError(f"step {staged.save.step} of {staged.who} was staged, and step {step} of {who} is written: the "
                               f"writer's step and the checkpoint_id have to be the same")
        self._save, self._lease = staged.save, staged.lease
        try:
            results = staged.complete(plan, planner)
            if staged.memory:
                self._wait_for_copies(step)
        except BaseException:
            if not self._leave(staged.lease.session, staged.layout.devices, staged.memory):
                staged.close()
            raise
        self._learned = {staged.layout.digest: staged.left | staged.deduplicated}
        return results

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the coordinator: waits until the checkpoint of all ranks is committed. Raises TimeoutError, which names who was
        late, AbortedError, which says by what, UnavailableError."""
        job, step = self._what()
        if self._save is None:
            raise InvalidError(f"job {job}: step {step} has not been written by this writer")
        try:
            self._save.wait("committed", self.timeout)
        except Error as e:
            raise type(e)(f"commit step {step} of job {job} ({len(results)} ranks): {e}", e.sys_errno) from e
        finally:
            self._end()

    # ---- parts of it ----

    def _row(self, item: WriteItem, plan: SavePlan, planner: SavePlanner, document: Document) -> Row:
        """The row of an item; what it adds to the document is noted there."""
        name, data = check_name(item.index.fqn), planner.resolve_data(item)
        if item.type == WriteItemType.BYTE_IO:
            if not isinstance(data, io.BytesIO):
                raise InvalidError(f'the planner gives a {type(data).__name__} for "{name}", where a BytesIO is wanted')
            content = data.getvalue()
            note_bytes(item, plan, document, len(content))
            return _memory.bytes_row(name, content, len(content))
        tensor = _memory.readable(data, name)
        shape, offset = note_tensor(item, tensor, plan, document)
        return _memory.row_of(name, tensor, shape, offset)

    def _document_rows(self, document: Document, rank: int) -> list[Row]:
        if document == Document():
            return []
        text = document.encode()
        room = self.room_for_document(len(text))
        return [_memory.bytes_row(_document.name_of(rank), text.ljust(room), room)]

    # ---- for AsyncStager ----

    @property
    def reaches_devices(self) -> bool:
        """Whether libcairn copies from devices, as far as it is known."""
        return self._devices.direct

    def use_devices(self, session: Session, devices: list[int]) -> bool:
        """Makes them ready. False, after one warning: torch has to copy."""
        return self._devices.use_anew(session, devices)

    def note_refusal(self, error: Error) -> None:
        """Of a save with tensors on devices: what libcairn cannot read there is copied by torch from now on."""
        self._devices.refused(error)

    def room_for_document(self, length: int) -> int:
        """Bytes to reserve for a document of this length; never fewer than before."""
        self._document_room = _document.room_for(length, self._document_room)
        return self._document_room

    def learned(self, layout: int) -> frozenset[MetadataIndex]:
        """What the plan gave to other ranks the last time a state dict of this layout was staged."""
        return self._learned.get(layout, frozenset())

    def take_staged(self, staged: Optional[Staged]) -> None:
        """What the next write_data() is to seal. One that is still there was never written (its plan failed, or it is
        written too late now): it is given up, and what was learned from earlier plans is no longer trusted."""
        before = self._swap_staged(staged)
        if before:
            before.close()
            self._learned.clear()

    def _swap_staged(self, staged: Optional[Staged]) -> Optional[Staged]:
        """stage() and write_data() are called by two threads; only one of them gets what is staged."""
        with _SWAP:
            before, self._staged = self._staged, staged
        return before

    def borrow(self, who: Who, need: int) -> Lease:
        if self._session is not None:
            return _sessions.lend(self._session)
        return _sessions.lease(who, self._settings, need)

    def _end(self) -> None:
        """Lets go of a save that was sealed: the daemon goes on with it."""
        lease = self._lease
        self._forget()  # what alias the arena keep a staged save alive themselves
        if lease:
            lease.close()

    # ---- another process: dcp.async_save in process mode ----

    def __getstate__(self) -> dict[str, Any]:
        """What the background process needs to save in this one's stead. The rank's session here is closed for it."""
        if self._session is not None:
            raise InvalidError("a StorageWriter with a session of the caller's cannot go to another process: leave session= out")
        if self._staged:
            self.take_staged(None)
            raise InvalidError("an AsyncStager has put the tensors into the arena, which cannot go to another process: with "
                               "dcp.async_save in process mode leave async_stager out, and use StorageWriter")
        self._end()
        who = self.local_who()
        _sessions.release(who.job, who.rank, self._settings)
        settings = dataclasses.replace(self._settings, start_id=_sessions.start_id(self._settings, who))
        return {**self.__dict__, "job": who.job, "_settings": settings, "layout": None}


def _devices_of(rows: list[Row]) -> list[int]:
    return sorted({row.device for row in rows} - {_lib.HOST})


def _is_usable(plan: SavePlan) -> bool:
    """False for a plan that only says that the rank's plan is the cached one."""
    return getattr(plan, "usable", True)


def _check_left(plans: list[SavePlan]) -> None:
    """What a rank has left to others is planned on one of them."""
    planned = {item.index for plan in plans for item in plan.items}
    for rank, plan in enumerate(plans):
        left = plan.storage_data.get(LEFT, ()) if isinstance(plan.storage_data, dict) else ()
        lost = [index.fqn for index in left if index not in planned]
        if lost:
            raise InvalidError(f'rank {rank} has left "{lost[0]}" ({len(lost)} in all) to other ranks, and none of them has it '
                               f"any more: nothing is saved, and the next save stages everything anew")


def done(value: Any) -> "Future[Any]":
    """A future that has its value."""
    future: Future[Any] = Future()
    future.set_result(value)
    return future
