# SPDX-License-Identifier: Apache-2.0
"""Accelerate: save_state and load_state through Cairn.

    from cairn.integrations.accelerate import CairnState

    state = CairnState(accelerator, "my-run")          # after accelerator.prepare(...)
    ...
    accelerator.save_state("out/step_100")             # the snapshot; training goes on
    ...
    accelerator.load_state("out/step_100")             # or state.load_latest("out")

The hooks save models, optimizers, schedulers, stateful data loaders, the gradient scaler, registered objects
and the generators of every rank. Accelerate itself still writes its small files into the directory, among
them empty ones for what Cairn holds; a load makes them anew, so the directory may be lost and found empty.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional, Union

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from accelerate.utils.constants import OPTIMIZER_NAME, RNG_STATE_NAME, SCALER_NAME, SCHEDULER_NAME

from .. import errors
from ..checkpointer import Checkpointer
from . import _plain, _rng
from ._shelf import Shelf

POINTER = "cairn.json"  # in a directory given to save_state
_ALIKE = ("models.", "optimizers.")  # in data-parallel runs all ranks hold the same: each stores a share
_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def _replicated(name: str) -> bool:
    return name.startswith(_ALIKE)


class CairnState:
    """Lets an Accelerator's save_state and load_state go through Cairn. Used from the thread that calls them.

    `checkpointer`: the job's name, for a Checkpointer of this object's own, or an open one. `options`: more
    arguments of cairn.Checkpointer. `delete_removed`: a directory that is saved to again gives its earlier
    checkpoints up.

    The step is the last number in the directory's name ("checkpoint_7", "step_100"), or the next free one.
    Every process calls save_state, as Accelerate demands. Errors: ValueError for FSDP, DeepSpeed and
    Megatron-LM, whose state Accelerate writes before any hook runs: let them write into a directory that
    `cairn watch` watches.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        checkpointer: Union[str, Checkpointer],
        *,
        delete_removed: bool = True,
        **options: Any,
    ) -> None:
        if accelerator.distributed_type in _SHARDED:
            raise ValueError(
                f"CairnState does not see the state of {accelerator.distributed_type.value}: let save_state write into "
                "a directory that `cairn watch` watches"
            )
        self._accelerator = accelerator
        self._owned = isinstance(checkpointer, str)
        if isinstance(checkpointer, str):
            world = accelerator.num_processes
            options = {"replicated": _replicated, **options} if world > 1 else options
            checkpointer = Checkpointer(
                checkpointer, rank=accelerator.process_index, world_size=world, **options
            )
        self._checkpointer = checkpointer
        self._shelf = Shelf(checkpointer, delete_removed=delete_removed and accelerator.is_main_process)
        self._hooks = [
            accelerator.register_save_state_pre_hook(self._before_save),
            accelerator.register_load_state_pre_hook(self._before_load),
        ]
        self._step: Optional[int] = None  # to load, instead of what the directory says

    def load_latest(self, directory: str) -> Optional[int]:
        """load_state() of the job's newest checkpoint: its step, or None if there is none.

        `directory` gets Accelerate's small files; it need not exist.
        """
        step = self._checkpointer.latest()
        if step is None:
            return None
        os.makedirs(directory, exist_ok=True)
        self._step = step
        try:
            self._accelerator.load_state(directory)
        finally:
            self._step = None
        return step

    def close(self) -> None:
        """Takes the hooks away and disconnects, if this object connected. Saves on their way go on in the
        daemon."""
        for hook in self._hooks:
            hook.remove()
        self._shelf.close()
        if self._owned:
            self._checkpointer.close()

    # ---- the hooks ----

    def _before_save(self, models: list[Any], weights: list[dict[str, Any]], directory: str) -> None:
        accelerator = self._accelerator
        state = {
            "models": list(weights),
            "optimizers": [type(each).state_dict(each) for each in accelerator._optimizers],
            "small": _plain.encode(self._small_state()),
            "custom": [_plain.encode(each.state_dict(), 0) for each in accelerator._custom_objects],
            "rng": _rng.capture(),
        }
        path = os.path.join(directory, POINTER) if accelerator.is_local_main_process else None
        if self._shelf.save(path, _number_in(directory), state) is None:
            # It was warned of. Accelerate writes everything itself, as without Cairn, and that is what a load must find.
            if path is not None and os.path.exists(path):
                self._shelf.remove(path)
            return
        weights.clear()
        for each in accelerator._optimizers:
            _once(each, "state_dict", dict)

    def _before_load(self, models: list[Any], directory: str) -> None:
        accelerator = self._accelerator
        step = self._step
        if step is None:
            pointer = os.path.join(directory, POINTER)
            if not os.path.exists(pointer):
                return  # saved without Cairn: Accelerate reads its own files
            step = self._shelf.find(pointer).step
        state = self._checkpointer.load_tree(step)
        self._check(state, models)
        for model, weights in zip(models, state["models"]):
            model.load_state_dict(weights)
        models.clear()
        for optimizer, saved in zip(accelerator._optimizers, state["optimizers"]):
            type(optimizer).load_state_dict(optimizer, saved)
            _once(optimizer, "load_state_dict", lambda _: None)
        self._write_small_files(Path(directory), state)
        accelerator.step = _plain.decode(state["small"])["step"]

    def _small_state(self) -> dict[str, Any]:
        accelerator = self._accelerator
        return {
            "step": accelerator.step,
            "schedulers": [each.state_dict() for each in accelerator._schedulers],
            "dataloaders": [
                each.state_dict() if getattr(each, "use_stateful_dataloader", False) else None
                for each in accelerator._dataloaders
            ],
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
        }

    def _check(self, state: dict[str, Any], models: list[Any]) -> None:
        """The checkpoint must hold what the Accelerator was given, one for one."""
        accelerator = self._accelerator
        small = state["small"]
        for what, saved, here in (
            ("models", state["models"], models),
            ("optimizers", state["optimizers"], accelerator._optimizers),
            ("schedulers", small["schedulers"], accelerator._schedulers),
            ("registered objects", state["custom"], accelerator._custom_objects),
        ):
            if len(saved) != len(here):
                raise errors.InvalidError(
                    f"load_state: the checkpoint holds {len(saved)} {what} and the Accelerator {len(here)}: prepare and "
                    "register the same ones before it"
                )

    def _write_small_files(self, directory: Path, state: dict[str, Any]) -> None:
        """What Accelerate reads after the hook, by its own names and in its own format."""
        small = _plain.decode(state["small"])
        for name, index, value in [
            *((OPTIMIZER_NAME, i, {}) for i in range(len(state["optimizers"]))),
            *((SCHEDULER_NAME, i, each) for i, each in enumerate(small["schedulers"])),
            *(("dl_state_dict", i, each) for i, each in enumerate(small["dataloaders"]) if each is not None),
        ]:
            _write_file(directory / (f"{name}.bin" if index == 0 else f"{name}_{index}.bin"), value)
        for index, each in enumerate(state["custom"]):
            _write_file(directory / f"custom_checkpoint_{index}.pkl", _plain.decode(each))
        if small["scaler"] is not None:
            _write_file(directory / SCALER_NAME, small["scaler"])
        _write_file(
            directory / f"{RNG_STATE_NAME}_{self._accelerator.process_index}.pkl",
            _generators(state["rng"], small["step"]),
        )


def _generators(rng: dict[str, Any], step: int) -> dict[str, Any]:
    states: dict[str, Any] = {
        "step": step,
        "random_state": _rng.python_state(rng),
        "numpy_random_seed": _rng.numpy_state(rng),
        "torch_manual_seed": rng["torch"],
    }
    for device in ("cuda", "xpu", "mlu", "sdaa", "musa", "hpu"):
        if device in rng:
            states[f"torch_{device}_manual_seed"] = rng[device]
    return states


def _number_in(directory: str) -> int:
    """The last number in the last part of a path, or 0: the next free step is taken then."""
    numbers = re.findall(r"[0-9]+", os.path.basename(os.path.normpath(directory)))
    return int(numbers[-1]) if numbers else 0


def _once(thing: Any, method: str, instead: Callable[..., Any]) -> None:
    """The next call of `method` does `instead`; the one after it is the class's own again."""

    def call(*args: Any, **kwargs: Any) -> Any:
        thing.__dict__.pop(method, None)
        return instead(*args, **kwargs)

    setattr(thing, method, call)


def _write_file(path: Path, value: Any) -> None:
    """torch.save() in one rename: every process of a node writes the same."""
    handle, temporary = tempfile.mkstemp(prefix=".cairn-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(value, file)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
