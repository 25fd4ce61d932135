# SPDX-License-Identifier: Apache-2.0
"""Lightning: a CheckpointIO that saves through Cairn.

    from cairn.integrations.lightning import CairnCheckpointIO

    io = CairnCheckpointIO("my-run")
    trainer = Trainer(plugins=[io], callbacks=[ModelCheckpoint(every_n_train_steps=100)])
    trainer.fit(model, ckpt_path=io.latest())        # None on the first start

A save returns when the state is in the node's shared memory. Lightning names checkpoints by paths and looks whether
they exist, so a small JSON file lies at each path and says which checkpoint it is (see _pointer.py). With the
strategies that have one rank save (single device, DDP) rank 0 saves and every rank reads.
"""

import os
from typing import Any, Callable, Dict, Optional, Union

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from .. import errors
from ..checkpointer import Checkpointer
from . import _plain
from ._shelf import Shelf

LATEST = "cairn:latest"  # as ckpt_path: the job's newest committed checkpoint, whatever paths exist

_TENSORS = ("state_dict", "optimizer_states")  # where tensors are saved as tensors; elsewhere they are few and tiny


class CairnCheckpointIO(CheckpointIO):
    """Saves a Trainer's checkpoints as checkpoints of a Cairn job. Used from the Trainer's thread.

    `job`: the job's name in Cairn, [A-Za-z0-9._-].
    `delete_removed`: what ModelCheckpoint removes (save_top_k) is deleted from Cairn too, once a later checkpoint is
    committed. False leaves that to `cairn retain`.
    `timeout`: seconds that teardown waits for the last save to be committed; 0: not at all (the daemon goes on).
    `options`: more arguments of cairn.Checkpointer (arena, on_busy, ...).

    The daemon is connected to at the first save or load. A save that fails warns and leaves no file at its path;
    training goes on.
    """

    def __init__(self, job: str, *, delete_removed: bool = True, timeout: float = 60.0, **options: Any) -> None:
        super().__init__()
        self.job = job
        self._delete_removed = delete_removed
        self._timeout = timeout
        self._options = options
        self._checkpointer: Optional[Checkpointer] = None
        self._shelf: Optional[Shelf] = None

    def save_checkpoint(self, checkpoint: Dict[str, Any], path: Union[str, os.PathLike], storage_options: Any = None):
        """Snapshots `checkpoint` and leaves a pointer at `path` (a local one). Nothing waits for storage.

        Errors: ValueError for a path on another file system; TypeError for storage_options, there are none.
        """
        if storage_options is not None:
            raise TypeError("save_checkpoint: CairnCheckpointIO knows no storage_options; pass them to its constructor")
        state = {key: value if key in _TENSORS else _plain.encode(value) for key, value in checkpoint.items()}
        self._open().save(_local(path), int(checkpoint.get("global_step", 0)), state)

    def load_checkpoint(
        self,
        path: Union[str, os.PathLike],
        map_location: Optional[Union[str, torch.device, Callable, Dict]] = None,
        weights_only: Optional[bool] = None,
    ) -> Dict[str, Any]:
        """The checkpoint at `path`, or the newest of the job for LATEST, with its tensors on the CPU or where
        `map_location` (a device) says. Nothing is unpickled, whatever `weights_only` says.

        Errors: FileNotFoundError; ValueError if the file is no pointer; cairn.NotFoundError if what it names was
        never committed.
        """
        shelf = self._open()
        step = self._agreed_latest() if str(path) == LATEST else shelf.find(_local(path)).step
        state = self._checkpointer.read(step)
        state = {key: value if key in _TENSORS else _plain.decode(value) for key, value in state.items()}
        return _moved(state, map_location)

    def remove_checkpoint(self, path: Union[str, os.PathLike]) -> None:
        """Removes the pointer at `path`; its checkpoint is deleted once a later one is committed."""
        self._open().remove(_local(path))

    def latest(self) -> Optional[str]:
        """What to give the Trainer as ckpt_path: LATEST, or None while the job has no committed checkpoint."""
        self._open()
        return None if self._checkpointer.latest() is None else LATEST

    def teardown(self) -> None:
        """Waits for the last save, runs deletions that are due, and disconnects; a later save connects again."""
        if self._checkpointer is None:
            return
        checkpointer, shelf = self._checkpointer, self._shelf
        self._checkpointer = self._shelf = None
        try:
            if self._timeout > 0:
                checkpointer.wait(timeout=self._timeout)
            shelf.close()
        finally:
            checkpointer.close()

    def _open(self) -> Shelf:
        if self._shelf is None:
            self._checkpointer = Checkpointer(self.job, rank=0, world_size=1, **self._options)
            self._shelf = Shelf(self._checkpointer, delete_removed=self._delete_removed)
        return self._shelf

    def _agreed_latest(self) -> int:
        """The newest committed step; in a process group what its rank 0 sees, so that no two ranks load different ones."""
        step = self._checkpointer.latest()
        number = torch.tensor([-1 if step is None else step], dtype=torch.int64)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.broadcast(number, src=0)
        if number.item() < 0:
            raise errors.NotFoundError(f"load {LATEST}: the job {self.job} has no committed checkpoint")
        return int(number.item())


def _local(path: Union[str, os.PathLike]) -> str:
    text = os.fspath(path)
    if "://" in text:
        raise ValueError(f"checkpoint path {text}: CairnCheckpointIO leaves a small file there and needs a local directory")
    return text


def _moved(value: Any, device: Any) -> Any:
    """`value` with its tensors on `device`; only a device can be asked for, since nothing is unpickled here."""
    if device is None:
        return value
    if not isinstance(device, (str, torch.device)):
        raise TypeError(f"map_location {device!r}: CairnCheckpointIO takes a device; move the loaded tensors yourself")
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        for key, each in value.items():
            value[key] = _moved(each, device)
        return value
    return type(value)(_moved(each, device) for each in value) if type(value) in (list, tuple) else value
