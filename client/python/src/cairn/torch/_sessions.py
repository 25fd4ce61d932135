# SPDX-License-Identifier: Apache-2.0
"""Sessions of this process: one for each job and rank, shared by writers and readers, closed at exit.

A rank can be held by one session only, so whoever in this process saves as a rank has to use the same. What is kept here
belongs to the process that opened it: a forked child starts with none.
"""
from __future__ import annotations

import atexit
import contextlib
import dataclasses
import os
import secrets
import threading
import time
from typing import Any, Optional, Union

import torch.distributed as dist

from .. import launch
from ..errors import BusyError, Error, ExistsError, InvalidError, StalePinError
from ..session import Session

_PART = 1 << 20  # the arena's page
_TAKEN_SECONDS = 5.0  # for which a rank may still be held by a session that was just closed
_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID")


@dataclasses.dataclass(frozen=True)
class Who:
    """A rank of a job."""

    job: str
    rank: int
    world_size: int

    def __str__(self) -> str:
        return f"job {self.job} rank {self.rank} of {self.world_size}"


def local_who(job: str, told: Optional[tuple[int, int]]) -> Who:
    """Who this process is in a job: rank and world size as told, or torch.distributed's, or the launcher's."""
    if told is not None:
        return Who(job, *told)
    if dist.is_available() and dist.is_initialized():
        return Who(job, dist.get_rank(), dist.get_world_size())
    found = launch.find(start_id="any")  # the start is another question
    return Who(job, found.rank, found.world_size)


def both_or_none(rank: Optional[int], world_size: Optional[int]) -> Optional[tuple[int, int]]:
    """What the caller says of rank and world size. Raises InvalidError for half of it."""
    if rank is None and world_size is None:
        return None
    if rank is None or world_size is None or not 0 <= rank < world_size:
        raise InvalidError(f"rank is {rank} and world_size {world_size}: give both, ranks from 0 to world_size - 1, or none "
                           f"to take them from torch.distributed")
    return rank, world_size


@dataclasses.dataclass(frozen=True)
class Settings:
    """How sessions are opened. arena: bytes, or "auto": as much as the saves turn out to need. The rest: see Session."""

    arena: Union[int, str] = "auto"
    socket: Optional[str] = None
    start_id: Optional[str] = None
    timeout: float = 30.0
    copy_threads: int = 1
    track: bool = False

    def __post_init__(self) -> None:
        is_size = isinstance(self.arena, int) and not isinstance(self.arena, bool) and self.arena > 0
        if self.arena != "auto" and not is_size:
            raise InvalidError(f'arena is {self.arena!r}: a size in bytes or "auto" is wanted')


class _Held:
    """A session that is open, and how many use it right now. resumed: the step that it was told to resume from."""

    def __init__(self, session: Session, who: Who, arena: int, resumed: Optional[int]) -> None:
        self.session, self.who, self.arena, self.users, self.resumed = session, who, arena, 0, resumed


class _Registry:
    def __init__(self) -> None:
        self.pid = os.getpid()
        self.start_id = f"start-{secrets.token_hex(16)}"  # of a world of one that nobody named
        self.changed = threading.Condition()
        self.ranks: dict[tuple[str, int, Optional[str]], _Held] = {}
        self.observers: dict[tuple[str, Optional[str]], Session] = {}


_registry = _Registry()  # replaced, never used, in a forked child


def _here() -> _Registry:
    global _registry
    if _registry.pid != os.getpid():
        _registry = _Registry()
    return _registry


def start_id(settings: Settings, who: Who) -> str:
    """The name of this start: what the caller says, or as a Checkpointer finds it (cairn.launch): from the launcher, or
    agreed upon through torch.distributed's store. A world of one without a launcher has one for the life of the process."""
    if settings.start_id is not None:
        return settings.start_id
    if who.world_size == 1 and all(os.environ.get(variable, "none") in ("", "none") for variable in _LAUNCHERS):
        return _here().start_id
    if dist.is_available() and dist.is_initialized():
        return launch.find().start_id
    return launch.find(who.rank, who.world_size).start_id


class Lease:
    """The use of a rank's session: while one lives, the session is not closed to be opened anew."""

    def __init__(self, held: Optional[_Held], session: Session) -> None:
        self._held, self.session = held, session

    def latest(self) -> Optional[int]:
        """The step that all ranks of this start resume from."""
        step = self.session.latest()
        if self._held:
            self._held.resumed = step
        return step

    def close(self) -> None:
        """Ends the use; the session stays open for the next one."""
        held, self._held = self._held, None
        if held is None:
            return
        with _here().changed:
            held.users -= 1
            _here().changed.notify_all()

    def __del__(self) -> None:
        self.close()

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def lend(session: Session) -> Lease:
    """A lease of a session that the caller brings and closes."""
    return Lease(None, session)


def lease(who: Who, settings: Settings, need: int) -> Lease:
    """The session of a rank, opened if there is none. need: bytes of arena; a session with less is opened anew, once nobody
    uses it, unless the caller has said how large it is to be."""
    registry = _here()
    with registry.changed:
        held = _take(registry, who, settings, need)
        held.users += 1
        return Lease(held, held.session)


def _take(registry: _Registry, who: Who, settings: Settings, need: int) -> _Held:
    key = (who.job, who.rank, settings.socket)
    held = registry.ranks.get(key)
    if held and held.who != who:
        raise InvalidError(f"{who}: this process has saved as {held.who}; close_sessions() before the world changes")
    if held and (settings.arena != "auto" or held.arena >= need):
        return held
    if held:
        _close(registry, key, settings, f"a larger arena ({need >> 20} MiB) is needed: give arena= the size needed at most")
    arena = settings.arena if isinstance(settings.arena, int) else max(need, _PART)
    resumed = held.resumed if held else None
    session = _open(who, settings, arena)
    if resumed is not None:
        _check_pin(session, who, resumed)
    made = registry.ranks[key] = _Held(session, who, session.arena_bytes, resumed)
    return made


def _check_pin(session: Session, who: Who, resumed: int) -> None:
    """A session that takes the place of another one does not know what was loaded through that."""
    step = session.latest()
    if step != resumed:
        session.close()
        raise StalePinError(f"{who} has loaded step {resumed}, and the job resumes from step {step} now: load again before saving")


def _close(registry: _Registry, key: tuple[str, int, Optional[str]], settings: Settings, why: str) -> None:
    held = registry.ranks[key]
    if not registry.changed.wait_for(lambda: held.users == 0, settings.timeout):
        raise BusyError(f"{held.who}: a save is still under way after {settings.timeout} s, and {why}")
    if registry.ranks.pop(key, None) is held:
        held.session.close()


def _open(who: Who, settings: Settings, arena: int) -> Session:
    """A session that was just closed, here or by the process that handed its writer to this one, may hold the rank for a
    moment still."""
    end = time.monotonic() + min(settings.timeout, _TAKEN_SECONDS)
    while True:
        try:
            return Session(
                who.job, rank=who.rank, world_size=who.world_size, arena_bytes=arena, socket=settings.socket,
                start_id=start_id(settings, who), timeout=settings.timeout, copy_threads=settings.copy_threads,
                track=settings.track,
            )
        except ExistsError as e:
            if time.monotonic() > end:
                raise ExistsError(f"{e}; is it held by another process, by a Checkpointer (pass session=), or by the background "
                                  f"process of dcp.async_save (which is the one to save through)?", e.sys_errno) from e
            time.sleep(0.02)


def has_rank(who: Who, settings: Settings) -> bool:
    """Whether this process holds the rank already."""
    return (who.job, who.rank, settings.socket) in _here().ranks


def observer(job: str, settings: Settings) -> Session:
    """A session that reads only."""
    registry, key = _here(), (job, settings.socket)
    with registry.changed:
        if key not in registry.observers:
            registry.observers[key] = Session(job, observer=True, socket=settings.socket, timeout=settings.timeout)
        return registry.observers[key]


def release(job: str, rank: int, settings: Settings) -> None:
    """Closes the rank's session if there is one, once nobody uses it. What was sealed goes on in the daemon."""
    registry, key = _here(), (job, rank, settings.socket)
    with registry.changed:
        if key in registry.ranks:
            _close(registry, key, settings, "another process is to take over the rank: wait for the save first")


def close_sessions() -> None:
    """Closes every session that writers and readers of this process have opened. What was sealed goes on in the daemon;
    whoever saves or loads next opens a new one."""
    registry = _here()
    with registry.changed:
        sessions: list[Any] = [held.session for held in registry.ranks.values()] + list(registry.observers.values())
        registry.ranks.clear()
        registry.observers.clear()
    for session in sessions:
        with contextlib.suppress(Error):
            session.close()


atexit.register(close_sessions)


def arena_for(bytes_by_dtype: dict[str, int]) -> int:
    """Bytes of arena for saves of this size: the shard, which fills pages of 1 MiB with one dtype each, and the window of a
    quarter in which the next save begins before the last one is stored."""
    shard = sum(-(-n // _PART) * _PART for n in bytes_by_dtype.values())
    window = -(-shard // 4 // _PART) * _PART
    return max(shard + window, _PART)
