# SPDX-License-Identifier: Apache-2.0
"""Checkpoints under paths: what a framework saves to, loads from and removes by a path, kept in Cairn.

A path becomes a step of the job: the framework's own step where that is free, else the next free one, since
Cairn saves a step once and frameworks save one step under several paths (best and last). Steps only go up, so
that "latest" is what was saved last.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import warnings
from typing import Any, Optional

from ..checkpointer import Checkpointer, SaveHandle
from ..errors import Error, InvalidError, NotFoundError
from ..session import Session
from . import _pointer
from ._pointer import Pointer

_LOG = logging.getLogger("cairn")
_APPEARS_S = 1.0  # from a snapshot that was given to the daemon to its being listed
_LOOK_S = 0.05  # between two looks at the list


class Shelf:
    """Paths on top of one Checkpointer. Save, load and remove from one thread; deletions run on a thread of
    their own.

    checkpointer: the shelf does not close it. delete_removed: a removed or overwritten path's checkpoint is
    deleted from Cairn too, once a later one is committed. False leaves that to `cairn retain`.
    """

    def __init__(self, checkpointer: Checkpointer, *, delete_removed: bool = True) -> None:
        self._checkpointer = checkpointer
        self._delete_removed = delete_removed
        self._taken: Optional[set[int]] = None
        self._last = -1
        self._handle: Optional[SaveHandle] = None
        self._lock = threading.Lock()
        self._doomed: set[tuple[int, int]] = set()  # (incarnation, step)
        self._sweeper: Optional[threading.Thread] = None

    def save(self, path: Optional[str], wanted_step: int, state: dict[Any, Any]) -> Optional[Pointer]:
        """Saves the state and leaves a pointer at path. Returns it, or None when the save failed (it was
        warned of) or was skipped.

        Returns when the snapshot is complete. Where a pointer lay at the path already it becomes the
        fallback; what was the fallback before is deleted once the new checkpoint is committed. Of several
        ranks that see one directory only one gives a path.
        """
        step = self._last = self._next_step(wanted_step)
        handle = self._checkpointer.save(step, state)
        if handle is None:
            return None
        self._handle = handle
        newest = Pointer(self._checkpointer.job, step, self._checkpointer.incarnation)
        if path is not None:
            earlier = [each for each in _pointer.read_if_any(path) if each.job == newest.job]
            _pointer.write(path, newest, earlier)
            self._doom(earlier[1:])
        return newest

    def wait(self, timeout: float) -> None:
        """Waits until the last save is committed. Raises TimeoutError, AbortedError and what else a save may
        fail with."""
        if self._handle is not None:
            self._handle.wait("committed", timeout)

    def find(self, path: str, timeout: float = 60.0) -> Pointer:
        """As find() of this module, after the last save of this process."""
        try:
            self.wait(timeout)
        except Error as e:  # the path may mean an earlier one
            _LOG.warning("job %s: the last save: %s", self._checkpointer.job, e)
        with self._checkpointer.observe() as session:
            return find(path, session, timeout)

    def remove(self, path: str) -> None:
        """Removes the pointer, and its checkpoints once a later one is committed. An absent path is no error."""
        named = _pointer.read_if_any(path)
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        self._doom([each for each in named if each.job == self._checkpointer.job])

    def close(self, timeout: float = 30.0) -> None:
        """Runs what deletions are due, and waits for them at most so many seconds."""
        end = time.monotonic() + timeout
        for _ in range(2):  # one that runs already may have looked too early
            sweeper = self._start_sweep()
            if sweeper is not None:
                sweeper.join(max(0.0, end - time.monotonic()))

    def _next_step(self, wanted: int) -> int:
        """The same on all ranks: what this start has saved is left out of the list, since another rank may be
        ahead."""
        if self._taken is None:
            self._taken = self._steps_of_others()
        step = max(wanted, self._last + 1)
        while step in (self._taken or ()):
            step += 1
        return step

    def _steps_of_others(self) -> Optional[set[int]]:
        """Steps of the job that earlier starts have saved; None when the daemon cannot say, and then the save
        will tell why."""
        checkpointer = self._checkpointer
        try:
            own = checkpointer.incarnation if checkpointer.world_size > 1 else -1
            with checkpointer.observe() as session:
                return {each["step"] for each in listed(session) if each["incarnation"] != own}
        except Error:
            return None

    # ---- deletion, in the background ----

    def _doom(self, pointers: list[Pointer]) -> None:
        if not self._delete_removed:
            return
        with self._lock:
            self._doomed.update((each.incarnation, each.step) for each in pointers)
        self._start_sweep()

    def _start_sweep(self) -> Optional[threading.Thread]:
        with self._lock:
            if self._sweeper is not None and self._sweeper.is_alive():
                return self._sweeper
            if not self._doomed:
                return None
            self._sweeper = threading.Thread(target=self._sweep, name="cairn-sweep", daemon=True)
            self._sweeper.start()
            return self._sweeper

    def _sweep(self) -> None:
        """Deletes what is doomed and has a later committed checkpoint; what is not decided yet stays doomed."""
        with self._lock:
            doomed = sorted(self._doomed)
        try:
            with self._checkpointer.observe() as session:
                states = {(each["incarnation"], each["step"]): each["state"] for each in listed(session)}
                newest = max((key for key, state in states.items() if state == "committed"), default=(-1, -1))
                for key in doomed:
                    state = states.get(key)
                    if state == "undecided" or (state == "committed" and key >= newest):
                        continue
                    if state == "committed":
                        session.command("delete", step=key[1])
                    with self._lock:
                        self._doomed.discard(key)
        except Error as e:
            _LOG.warning("delete removed checkpoints of %s: %s", self._checkpointer.job, e)


def listed(session: Session) -> list[dict[str, Any]]:
    """The checkpoints of the session's job as `cairn ls` lists them, in any state."""
    try:
        return session.query("list")["checkpoints"]
    except NotFoundError:
        return []


def find(path: str, session: Session, timeout: float = 60.0) -> Pointer:
    """The committed checkpoint that the pointer at a path means: the newest that it names and that exists.

    One that is on its way is waited for. session: of the job; timeout: seconds. Raises FileNotFoundError and
    ValueError of the pointer, InvalidError for another job's, NotFoundError when nothing that it names was
    committed.
    """
    named = _pointer.read(path)
    if named[0].job != session.job:
        raise InvalidError(
            f"{path} names a checkpoint of the job {named[0].job}: load it with that job's name, not {session.job}"
        )
    states = _settled(named[0], session, timeout)
    for each in named:
        if states.get((each.incarnation, each.step)) == "committed":
            if each != named[0]:
                text = f"{path} meant {named[0]}, which was never committed: this is the one before, {each}"
                warnings.warn(text, RuntimeWarning, stacklevel=3)
            return each
    newest = max((key for key, state in states.items() if state == "committed"), default=None)
    instead = f"the newest of the job is step {newest[1]}" if newest else "the job has no checkpoint"
    raise NotFoundError(f"load {path}: {named[0]} is not committed; {instead} (cairn ls {session.job})")


def _settled(wanted: Pointer, session: Session, timeout: float) -> dict[tuple[int, int], str]:
    """The states of the job's checkpoints, when that of the wanted one is decided or the time is over. One
    that is not in the list may be about to come, for a second or two."""
    now = time.monotonic()
    end, appears = now + timeout, now + min(timeout, _APPEARS_S)
    while True:
        states = {(each["incarnation"], each["step"]): each["state"] for each in listed(session)}
        state, now = states.get((wanted.incarnation, wanted.step)), time.monotonic()
        if state not in (None, "undecided") or now > (appears if state is None else end):
            return states
        time.sleep(_LOOK_S)
