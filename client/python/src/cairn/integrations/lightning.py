# SPDX-License-Identifier: Apache-2.0
"""Lightning: a CheckpointIO that saves through Cairn.

    from cairn.integrations.lightning import CairnCheckpointIO

    io = CairnCheckpointIO("my-run")
    trainer = Trainer(plugins=[io], callbacks=[ModelCheckpoint(every_n_train_steps=100)])
    trainer.fit(model, ckpt_path=io.latest())        # None on the first start

Fabric(plugins=[io]) takes it as well; there each fabric.save() gets the next free step.

A save returns when the state is in the node's shared memory. Lightning names checkpoints by paths and looks
whether they exist, so a small JSON file lies at each path and says which checkpoint it is. With the
strategies that have one rank save (single device, DDP) rank 0 saves and every rank reads; strategies that
save by themselves (FSDP, ModelParallelStrategy, DeepSpeed) take no CheckpointIO: let them write into a
directory that `cairn watch` watches.
"""

from __future__ import annotations

import logging
import os
from typing import Any, Optional, Union

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.fabric.utilities.rank_zero import rank_zero_only

from ..checkpointer import Checkpointer, read
from ..errors import Error, NotFoundError
from ..session import Session
from . import _plain
from ._shelf import Shelf, find

LATEST = "cairn:latest"  # as ckpt_path: the job's newest committed checkpoint, whatever files there are
_TENSORS = ("state_dict", "optimizer_states")  # saved as they are; elsewhere tensors are few and tiny
_LOG = logging.getLogger("cairn")

Path = Union[str, "os.PathLike[str]"]


class CairnCheckpointIO(CheckpointIO):
    """Saves a Trainer's checkpoints as checkpoints of a Cairn job. Used from the Trainer's thread.

    job: the job's name in Cairn, [A-Za-z0-9._-]. delete_removed: what ModelCheckpoint removes (save_top_k) is
    deleted from Cairn too, once a later checkpoint is committed; False leaves that to `cairn retain`.
    timeout: seconds that teardown waits for the last save to be committed; 0: not at all, the daemon goes on.
    options: more arguments of cairn.Checkpointer (arena, on_busy, ...).

    The daemon is connected to at the first save or load. A save that fails warns and leaves no file at its
    path; training goes on.
    """

    def __init__(
        self, job: str, *, delete_removed: bool = True, timeout: float = 60.0, **options: Any
    ) -> None:
        super().__init__()
        self.job = job
        self._delete_removed = delete_removed
        self._timeout = timeout
        self._options = options
        self._checkpointer: Optional[Checkpointer] = None
        self._shelf: Optional[Shelf] = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Path, storage_options: Optional[Any] = None
    ) -> None:
        """Snapshots the checkpoint and leaves a pointer at the path (a local one). Nothing waits for storage.

        Raises ValueError for a path on another file system, TypeError for storage_options: there are none.
        """
        if storage_options is not None:
            raise TypeError(
                "save_checkpoint: CairnCheckpointIO knows no storage_options; it takes options when it is made"
            )
        # Of the Trainer's callbacks; Fabric's users put their models where they like.
        small = _plain.SMALL if "pytorch-lightning_version" in checkpoint else 0
        state = {
            key: value if key in _TENSORS else _plain.encode(value, small)
            for key, value in checkpoint.items()
        }
        self._open().save(_local(path), int(checkpoint.get("global_step", 0)), state)

    def load_checkpoint(
        self, path: Path, map_location: Optional[Any] = None, weights_only: Optional[bool] = None
    ) -> dict[str, Any]:
        """The checkpoint at the path, or the newest of the job for LATEST; tensors on the CPU, or on the
        device that map_location names. Nothing is unpickled, whatever weights_only says.

        One that is still on its way is waited for. Raises FileNotFoundError, ValueError if the file is no
        pointer, cairn.NotFoundError if what it names was never committed.
        """
        if str(path) == LATEST:
            step = self._agreed_latest()
        elif self._shelf is not None:
            step = self._shelf.find(_local(path)).step
        else:
            with self._observe() as session:
                step = find(_local(path), session).step
        state = read(
            self.job,
            step,
            socket=self._options.get("socket"),
            allow_pickle=self._options.get("pickle", False),
        )
        state = {key: value if key in _TENSORS else _plain.decode(value) for key, value in state.items()}
        return _moved(state, map_location)

    def remove_checkpoint(self, path: Path) -> None:
        """Removes the pointer at the path; its checkpoint is deleted once a later one is committed."""
        self._open().remove(_local(path))

    def latest(self) -> Optional[str]:
        """What to give the Trainer as ckpt_path: LATEST, or None while the job has no committed checkpoint."""
        with self._observe() as session:
            return None if session.latest() is None else LATEST

    def teardown(self) -> None:
        """Waits for the last save, runs deletions that are due, and disconnects; a later save connects again."""
        checkpointer, shelf = self._checkpointer, self._shelf
        self._checkpointer = self._shelf = None
        if checkpointer is None or shelf is None:
            return
        try:
            shelf.wait(self._timeout)
        except Error as e:
            _LOG.warning("job %s: the last save: %s", self.job, e)
        if self._timeout:
            shelf.close(self._timeout)
        checkpointer.close(0.0)

    def _open(self) -> Shelf:
        if self._shelf is None:
            self._checkpointer = Checkpointer(self.job, rank=0, world_size=1, **self._options)
            self._shelf = Shelf(self._checkpointer, delete_removed=self._delete_removed)
        return self._shelf

    def _observe(self) -> Session:
        return Session(self.job, observer=True, socket=self._options.get("socket"))

    def _agreed_latest(self) -> int:
        """The newest committed step; in a process group what its rank 0 sees, so that no two ranks load
        different ones."""
        step = torch.tensor([-1], dtype=torch.int64, device=_device())
        if rank_zero_only.rank in (None, 0):
            with self._observe() as session:
                found = session.latest()
            step[0] = -1 if found is None else found
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.broadcast(step, src=0)
        if step.item() < 0:
            raise NotFoundError(f"load {LATEST}: the job {self.job} has no committed checkpoint")
        return int(step.item())


def _device() -> str:
    """Where the process group's tensors must be."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_backend() == "nccl":
        return "cuda"
    return "cpu"


def _local(path: Path) -> str:
    text = os.fspath(path)
    if "://" in text:
        raise ValueError(
            f"{text}: CairnCheckpointIO leaves a small file at a checkpoint's path and needs a local directory"
        )
    return text


def _moved(value: Any, device: Optional[Any]) -> Any:
    """The value with its tensors on the device."""
    if device is None or callable(device):  # a function tells storages apart, of which there are none here
        return value
    if not isinstance(device, (str, torch.device)):
        raise TypeError(f"map_location is {device!r}: a device is wanted")
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        for key, each in value.items():
            value[key] = _moved(each, device)
        return value
    return type(value)(_moved(each, device) for each in value) if type(value) in (list, tuple) else value
