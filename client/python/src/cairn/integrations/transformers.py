# SPDX-License-Identifier: Apache-2.0
"""Hugging Face Trainer: a callback that saves through Cairn.

    from cairn.integrations.transformers import CairnCallback

    cairn = CairnCallback("my-run", every=100)
    trainer = Trainer(model, TrainingArguments(..., save_strategy="no"), callbacks=[cairn], ...)
    trainer.train(resume_from_checkpoint=cairn.resume(trainer))      # None on the first start

Saved are the model, the optimizer, the learning rate schedule, a gradient scaler, the generators of every
rank and the TrainerState: all that Trainer's own checkpoints hold. `save_strategy="no"` spares Trainer's own,
blocking files.

Trainer resumes from a directory only, so resume() writes one with what Trainer reads, and the callback
removes it when the first step is done.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import tempfile
from typing import Any, Optional, Union

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from ..checkpointer import Checkpointer
from . import _plain, _rng

# What every rank of a data-parallel run holds alike, so that each stores a share of it. Generators are each
# rank's own.
_ALIKE = ("model.", "optimizer.", "scaler.")


def _replicated(name: str) -> bool:
    return name.startswith(_ALIKE)


class CairnCallback(TrainerCallback):
    """Saves a Trainer's state as checkpoints of a Cairn job. Used from the Trainer's thread.

    `checkpointer`: the job's name, for a Checkpointer of the callback's own (closed by close()), or an open
    one, whose `replicated` must fit the run. `every`: steps between saves; 0: whenever Trainer itself saves.
    `options`: more arguments of cairn.Checkpointer (arena, on_busy, ...).

    The save comes after the step's logging and evaluation, so that a resumed run goes on where Trainer's own
    would. Not for DeepSpeed or FSDP, whose state Trainer's callbacks do not see: there let Trainer write
    files into a directory that `cairn watch` watches.
    """

    def __init__(self, checkpointer: Union[str, Checkpointer], *, every: int = 0, **options: Any) -> None:
        if every < 0:
            raise ValueError(
                f"every is {every}: a number of steps is wanted, or 0 for Trainer's own save steps"
            )
        self._job = checkpointer if isinstance(checkpointer, str) else checkpointer.job
        self._checkpointer = None if isinstance(checkpointer, str) else checkpointer
        self._owned = self._checkpointer is None
        self._options = options
        self._every = every
        self._due: Optional[dict[str, Any]] = (
            None  # the step's arguments, while its logging and evaluation are ahead
        )
        self._saved = -1
        self._directory: Optional[str] = None
        self._trainer: Optional[Trainer] = None

    # ---- saving ----

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._remove_directory()
        if self._every and state.global_step % self._every == 0:
            self._due = kwargs
            if not (control.should_log or control.should_evaluate):
                self._save(args, state)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._due is not None and not control.should_evaluate:
            self._save(args, state)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._save(args, state)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._save(args, state)  # whatever was expected after the step did not come

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._save(args, state)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self._every:
            self._due = kwargs
            self._save(args, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._save(args, state)
        self._remove_directory()

    def _save(self, args: TrainingArguments, state: TrainerState) -> None:
        """Saves if a save is due. The snapshot is complete when this returns."""
        due, self._due = self._due, None
        if due is None or state.global_step == self._saved:
            return
        self._refuse_sharded(args)
        self._saved = state.global_step
        self._open(args).save(state.global_step, self._state(due, state))

    def _state(self, due: dict[str, Any], state: TrainerState) -> dict[str, Any]:
        saved = {
            "model": due["model"].state_dict(),
            "optimizer": due["optimizer"].state_dict(),
            "lr_scheduler": _plain.encode(due["lr_scheduler"].state_dict()),
            "rng": _rng.capture(),
            "trainer_state": self._trainer_state(state),
        }
        scaler = getattr(self._trainer.accelerator, "scaler", None) if self._trainer is not None else None
        return saved if scaler is None else {**saved, "scaler": scaler.state_dict()}

    def _trainer_state(self, state: TrainerState) -> str:
        """The content of trainer_state.json. One string, not a tree: the history of logs in it grows with the
        run."""
        fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
        if self._trainer is not None:
            stateful = [*self._trainer.callback_handler.callbacks, self._trainer.control]
            states: dict[str, list[Any]] = {}
            for each in stateful:
                if isinstance(each, ExportableState):
                    states.setdefault(type(each).__name__, []).append(each.state())
            fields["stateful_callbacks"] = {
                name: found[0] if len(found) == 1 else found for name, found in states.items()
            }
        return json.dumps(fields, sort_keys=True)

    # ---- resuming ----

    def resume(self, trainer: Trainer, step: Union[int, str] = "latest") -> Optional[str]:
        """A directory for Trainer.train(resume_from_checkpoint=...) with the state of `step`, or None if
        there is none.

        Every rank calls it, before train(). Call it also where there is nothing to resume: it tells the
        callback of the Trainer's gradient scaler and of other callbacks that have a state. On each node one
        rank writes what all need, beside output_dir; the directory needs room for the state once. Errors:
        cairn.NotFoundError for a step that was given and is not there.
        """
        args = trainer.args
        self._refuse_sharded(args)
        self._trainer = trainer
        checkpointer = self._open(args)
        if step == "latest":
            found = checkpointer.latest()
            if found is None:
                return None
            step = found
        saved = checkpointer.load_tree(step)
        self._directory = _directory(args, int(step))
        if args.local_process_index == 0:
            _write_shared(self._directory, saved)
        _write_generators(self._directory, saved["rng"], args)
        if args.world_size > 1:
            torch.distributed.barrier()
        return self._directory

    def _remove_directory(self) -> None:
        directory, self._directory = self._directory, None
        if directory is not None:
            shutil.rmtree(
                directory, ignore_errors=True
            )  # every rank of the node tries, the first one does it

    # ---- the connection ----

    def _open(self, args: TrainingArguments) -> Checkpointer:
        if self._checkpointer is None:
            world = args.world_size
            options = {"replicated": _replicated, **self._options} if world > 1 else self._options
            self._checkpointer = Checkpointer(self._job, rank=args.process_index, world_size=world, **options)
        return self._checkpointer

    @staticmethod
    def _refuse_sharded(args: TrainingArguments) -> None:
        if args.deepspeed or args.fsdp:
            raise ValueError(
                "CairnCallback does not see the sharded state of DeepSpeed and FSDP: let Trainer save files into a "
                "directory that `cairn watch` watches"
            )

    def close(self) -> None:
        """Disconnects, if the callback connected. Saves on their way go on in the daemon."""
        checkpointer, self._checkpointer = self._checkpointer, None
        if self._owned and checkpointer is not None:
            checkpointer.close()


# ---- Trainer's files ----


def _directory(args: TrainingArguments, step: int) -> str:
    """The same for all ranks of a node, another one for each node: output_dir may be shared."""
    return os.path.join(args.output_dir, f".cairn-resume-{step}-{socket.gethostname()}")


def _write_shared(directory: str, saved: dict[str, Any]) -> None:
    """What all ranks read, by the names that Trainer knows. Each file appears whole."""
    os.makedirs(directory, exist_ok=True)
    _save_file(os.path.join(directory, "pytorch_model.bin"), saved["model"])
    _save_file(os.path.join(directory, "optimizer.pt"), saved["optimizer"])
    _save_file(os.path.join(directory, "scheduler.pt"), _plain.decode(saved["lr_scheduler"]))
    if "scaler" in saved:
        _save_file(os.path.join(directory, "scaler.pt"), saved["scaler"])
    with open(os.path.join(directory, "trainer_state.json"), "w", encoding="utf-8") as file:
        file.write(saved["trainer_state"])


def _write_generators(directory: str, rng: dict[str, Any], args: TrainingArguments) -> None:
    states: dict[str, Any] = {"python": _rng.python_state(rng), "cpu": rng["torch"]}
    if "numpy" in rng:
        states["numpy"] = _rng.numpy_state(rng)
    for device in ("cuda", "npu", "hpu", "mlu", "musa"):
        if device in rng:
            states[device] = rng[device] if args.parallel_mode.value == "distributed" else rng[device][0]
    name = "rng_state.pth" if args.world_size <= 1 else f"rng_state_{args.process_index}.pth"
    os.makedirs(directory, exist_ok=True)
    _save_file(os.path.join(directory, name), states)


def _save_file(path: str, value: Any) -> None:
    handle, temporary = tempfile.mkstemp(prefix=".cairn-", dir=os.path.dirname(path))
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(value, file)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
