# SPDX-License-Identifier: Apache-2.0
"""Checkpoints under paths: what a framework saves to, loads from and removes by a path, kept in Cairn.

A path becomes a step of the job: the framework's own step where that is free, else the next free one, since Cairn
saves a step once and frameworks save one step under several paths (best and last). Steps only go up, so that
"latest" is what was saved last.
"""

import os
import threading
import warnings
from typing import Any, Dict, List, Optional, Set, Tuple

from .. import errors
from . import _pointer
from ._pointer import Pointer


class Shelf:
    """Paths on top of one Checkpointer. Save, load and remove from one thread; deletions run on a thread of their own.

    `checkpointer`: an open cairn.Checkpointer; the shelf does not close it.
    `delete_removed`: a removed or overwritten path's checkpoint is deleted from Cairn too, once a later one is
    committed. False leaves that to `cairn retain`.
    """

    def __init__(self, checkpointer: Any, *, delete_removed: bool = True) -> None:
        self._checkpointer = checkpointer
        self._delete_removed = delete_removed
        self._taken: Optional[Set[int]] = None
        self._last = -1
        self._lock = threading.Lock()
        self._doomed: Set[Tuple[int, int]] = set()  # (incarnation, step)
        self._sweeper: Optional[threading.Thread] = None

    def save(self, path: Optional[str], wanted_step: int, state: Any) -> Optional[Pointer]:
        """Saves `state` and leaves a pointer at `path`. Returns it, or None when the save failed (it was warned of).

        Returns when the snapshot is complete. Where a pointer lay at `path` already it becomes the fallback; what
        was the fallback before is deleted once the new checkpoint is committed. Of several ranks that see one
        directory only one gives a path.
        """
        step = self._last = self._next_step(wanted_step)
        if not self._checkpointer.save(step, state):
            return None
        session = self._checkpointer.session
        newest = Pointer(self._checkpointer.job, step, session.incarnation)
        if path is None:
            return newest
        earlier = _pointer.read_if_any(path)
        _pointer.write(path, newest, earlier)
        self._doom(each for each in earlier[1:] if each.job == newest.job)
        return newest

    def find(self, path: str) -> Pointer:
        """The committed checkpoint that `path` means: the newest that it names and that exists.

        Errors: FileNotFoundError, ValueError of the pointer; NotFoundError when nothing it names was committed.
        """
        named = _pointer.read(path)
        committed = {(each["incarnation"], each["step"]) for each in self._list(named[0].job, committed=True)}
        for each in named:
            if (each.incarnation, each.step) in committed:
                if each != named[0]:
                    warnings.warn(
                        f"{path} meant {named[0]}, which was never committed: reading the one before, {each}",
                        RuntimeWarning,
                        stacklevel=3,
                    )
                return each
        newest = max(committed, default=None)
        raise errors.NotFoundError(
            f"read {path}: {named[0]} is not committed; "
            + (f"the newest checkpoint of the job is step {newest[1]}" if newest else "the job has no checkpoint")
            + f" (cairn ls {named[0].job})"
        )

    def remove(self, path: str) -> None:
        """Removes the pointer, and its checkpoints once a later one is committed. An absent path is no error."""
        named = _pointer.read_if_any(path)
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        self._doom(each for each in named if each.job == self._checkpointer.job)

    def close(self, timeout: float = 30.0) -> None:
        """Runs what deletions are due, and waits for them at most `timeout` seconds."""
        sweeper = self._start_sweep()
        if sweeper is not None:
            sweeper.join(timeout)

    # ---- steps ----

    def _next_step(self, wanted: int) -> int:
        """The same on all ranks: what this start has saved is left out of the list, since another rank may be ahead."""
        if self._taken is None:
            own = self._checkpointer.session.incarnation if self._checkpointer.world_size > 1 else -1
            self._taken = {each["step"] for each in self._list(self._checkpointer.job) if each["incarnation"] != own}
        step = max(wanted, self._last + 1)
        while step in self._taken:
            step += 1
        return step

    def _list(self, job: str, committed: bool = False) -> List[Dict[str, Any]]:
        try:
            found = self._checkpointer.session.query("list", job)["checkpoints"]
        except errors.NotFoundError:
            return []
        return [each for each in found if not committed or each["state"] == "committed"]

    # ---- deletion, in the background ----

    def _doom(self, pointers: Any) -> None:
        with self._lock:
            self._doomed.update((each.incarnation, each.step) for each in pointers if self._delete_removed)
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
            listed = {(each["incarnation"], each["step"]): each for each in self._list(self._checkpointer.job)}
            newest = max((key for key, each in listed.items() if each["state"] == "committed"), default=(-1, -1))
            for key in doomed:
                state = listed.get(key, {"state": "aborted"})["state"]
                if state == "undecided" or (state == "committed" and key >= newest):
                    continue
                if state == "committed":
                    self._checkpointer.session.command("delete", step=key[1])
                with self._lock:
                    self._doomed.discard(key)
        except errors.Error as error:
            warnings.warn(f"delete removed checkpoints of {self._checkpointer.job}: {error}", RuntimeWarning)
