# SPDX-License-Identifier: Apache-2.0
"""A checkpoint manager in the shape of torchtitan's, for loops written that way. Needs torch, not torchtitan.

    manager = CheckpointManager("my-run", {"model": model, "optimizer": optim, "train_state": state}, interval=100)
    manager.load()
    for step in range(state.step + 1, steps + 1):
        manager.maybe_wait_for_staging()          # before the optimizer changes what is being saved
        ...
        manager.save(step, last_step=step == steps)
    manager.close()

In torchtitan itself: cairn.integrations.torchtitan.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional, Protocol, Union

from ..checkpointer import Checkpointer, SaveHandle


class Stateful(Protocol):
    """What has a state: modules, optimizers, schedulers, data loaders, and objects of the program's own."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


class CheckpointManager:
    """Saves and loads named Stateful objects. Every rank makes one, and calls its methods from the training
    thread.

    checkpointer: the job's name, for a Checkpointer of the manager's own (closed by close()), or an open one.
    states: saved under their names; a None is left out. interval: steps between saves. first_step: save after
    step 1 too. keep_latest: checkpoints to keep, by the job's retention rule; 0: all, or what the rule says
    already. load_only: never save. timeout: seconds that the last save may take to be committed. options:
    more arguments of cairn.Checkpointer.

    FSDP2's and tensor-parallel states are DTensors: each rank saves its own slices, and any number of ranks
    can load them.
    """

    def __init__(
        self,
        checkpointer: Union[str, Checkpointer],
        states: Mapping[str, Optional[Stateful]],
        *,
        interval: int = 500,
        first_step: bool = False,
        keep_latest: int = 0,
        load_only: bool = False,
        timeout: float = 600.0,
        **options: Any,
    ) -> None:
        if interval < 1:
            raise ValueError(f"interval is {interval}: at least one step is wanted")
        self._owned = isinstance(checkpointer, str)
        self.checkpointer = (
            Checkpointer(checkpointer, **options) if isinstance(checkpointer, str) else checkpointer
        )
        self.states = {name: each for name, each in states.items() if each is not None}
        self._interval, self._first_step, self._load_only = interval, first_step, load_only
        self._keep_latest, self._timeout = keep_latest, timeout
        self._handle: Optional[SaveHandle] = None

    def load(self, step: int = -1, only: Optional[set[str]] = None) -> bool:
        """Restores the states from `step`, -1 being the latest; False when there is none. only: names of
        states to load.

        Errors: cairn.NotFoundError for a step that was given and is not there; cairn.Error for what does not
        fit.
        """
        if step == -1:
            latest = self.checkpointer.latest()
            if latest is None:
                return False
            step = latest
        wanted: dict[str, Any] = {
            name: each for name, each in self.states.items() if only is None or name in only
        }
        self.checkpointer.load(wanted, step, strict=only is None)
        return True

    def save(self, curr_step: int, last_step: bool = False) -> bool:
        """Takes a snapshot where one is due; whether it was taken. The last step's is waited for until it is
        committed."""
        if not self.is_due(curr_step, last_step):
            return False
        return self.save_states(
            {name: each.state_dict() for name, each in self.states.items()}, curr_step, last_step
        )

    def is_due(self, curr_step: int, last_step: bool = False) -> bool:
        """Whether save() would save."""
        if self._load_only:
            return False
        return last_step or curr_step % self._interval == 0 or (self._first_step and curr_step == 1)

    def save_states(self, states: dict[str, Any], curr_step: int, last_step: bool) -> bool:
        """As save(), of state dicts that the caller has made."""
        self._set_retention()
        handle = self.checkpointer.save(curr_step, states)
        self._handle = handle or self._handle
        if handle is not None and last_step:
            self.maybe_wait_for_saving()
        return handle is not None

    def _set_retention(self) -> None:
        keep, self._keep_latest = self._keep_latest, 0
        if keep and self.checkpointer.rank == 0:
            with self.checkpointer.observe() as session:
                session.command("retain", argument=f"last={keep}")

    def maybe_wait_for_staging(self) -> None:
        """Puts the fence: what the step puts into the GPU's stream waits there for the copies. To let the next
        forward and backward run meanwhile: manager.checkpointer.attach(optimizer)."""
        self.checkpointer.fence()

    def maybe_wait_for_saving(self) -> None:
        """Waits until the last save is committed. Errors: cairn.TimeoutError, cairn.AbortedError."""
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.wait("committed", self._timeout)

    def close(self) -> None:
        """Disconnects, if the manager connected. Saves on their way go on in the daemon."""
        if self._owned:
            self.checkpointer.close()
