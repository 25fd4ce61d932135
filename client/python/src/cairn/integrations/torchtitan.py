# SPDX-License-Identifier: Apache-2.0
"""torchtitan: its checkpoint manager, saving through Cairn.

    from cairn.integrations.torchtitan import CairnCheckpointManager

    def my_config() -> Trainer.Config:
        config = llama3_8b()
        config.checkpoint = CairnCheckpointManager.Config(enable=True, job="llama", interval=100, last_save_model_only=False)
        return config

`folder` is not used: the job is where checkpoints are. Loading a model to begin with (initial_load_path,
initial_load_in_hf) and writing the last one for Hugging Face (last_save_in_hf) are torchtitan's own
manager's; export with `cairn restore --format safetensors` instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

import torch
from torchtitan.components.checkpointer import (
    DATALOADER,
    LR_SCHEDULER,
    MODEL,
    OPTIMIZER,
    BaseCheckpointManager,
    ModelWrapper,
)
from torchtitan.config import TORCH_DTYPE_MAP

from .titan import CheckpointManager

_FOREIGN = (
    "initial_load_path",
    "initial_load_in_hf",
    "initial_load_in_hf_quantized",
    "last_save_in_hf",
    "create_seed_checkpoint",
)


class CairnCheckpointManager(BaseCheckpointManager):
    """Built by its Config, as torchtitan's Trainer does. Every rank has one, used from the training thread."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseCheckpointManager.Config):
        job: str = "torchtitan"
        """The job's name in Cairn: [A-Za-z0-9._-]."""

        arena: int = 0
        """Bytes of shared memory for snapshots; 0: sized by the state."""

        def __post_init__(self) -> None:
            BaseCheckpointManager.Config.__post_init__(self)
            for field in _FOREIGN:
                if getattr(self, field):
                    raise ValueError(
                        f"CairnCheckpointManager does not do {field}: use torchtitan's own manager for that run"
                    )

    def __init__(
        self,
        config: "CairnCheckpointManager.Config",
        *,
        dataloader: Any,
        model_parts: list[torch.nn.Module],
        optimizers: Any,
        lr_schedulers: Any,
        states: dict[str, Any],
        sd_adapter: Any = None,
        base_folder: str = "",
    ) -> None:
        self.enable = config.enable
        self.save_future = None
        self._manager: Optional[CheckpointManager] = None
        if not self.enable:
            return
        self._exclude = set(config.exclude_from_loading)
        self._export = TORCH_DTYPE_MAP[config.export_dtype] if config.last_save_model_only else None
        states.update(
            {
                MODEL: ModelWrapper(model_parts),
                OPTIMIZER: optimizers,
                DATALOADER: dataloader,
                LR_SCHEDULER: lr_schedulers,
            }
        )
        unknown = self._exclude - set(states)
        if unknown:
            raise ValueError(
                f"exclude_from_loading names {', '.join(sorted(unknown))}; the states are {', '.join(states)}"
            )
        self._manager = CheckpointManager(
            config.job,
            states,
            interval=config.interval,
            first_step=config.enable_first_step_checkpoint,
            keep_latest=config.keep_latest_k,
            load_only=config.load_only,
            arena=config.arena or "auto",
        )
        if not config.load_only:
            self._manager.checkpointer.attach(*_steps(optimizers, model_parts))

    def __del__(self) -> None:
        self.close()

    @torch.no_grad()
    def _load(self, step: int = -1) -> bool:
        if step == 0:
            return self._manager.load(step, {MODEL})
        return self._manager.load(step, set(self._manager.states) - self._exclude if self._exclude else None)

    @torch.no_grad()
    def _save(self, curr_step: int, last_step: bool = False) -> bool:
        if last_step and self._export is not None and self._manager.is_due(curr_step, last_step):
            self._manager.checkpointer.detach()  # no step follows, and what is exported is nobody else's
            return self._manager.save_states({MODEL: self._exported()}, curr_step, last_step)
        return self._manager.save(curr_step, last_step)

    def _exported(self) -> dict[str, Any]:
        """The model's state for others: in the export's dtype."""
        state = self._manager.states[MODEL].state_dict()
        return {
            name: (
                each.to(self._export) if isinstance(each, torch.Tensor) and each.is_floating_point() else each
            )
            for name, each in state.items()
        }

    def _maybe_wait_for_staging(self) -> None:
        self._manager.maybe_wait_for_staging()

    def _wait_for_saving(self) -> None:
        """Never called: save_future stays None, since nothing of a save is left to this process."""

    def _close(self) -> None:
        if getattr(self, "_manager", None) is not None:
            self._manager.close()


def _steps(optimizers: Any, model_parts: list[torch.nn.Module]) -> list[torch.optim.Optimizer]:
    """The optimizers in whose steps alone torchtitan's Trainer changes parameters: behind
    maybe_wait_for_staging(). None where some parameters are frozen: of those Cairn would not know that nobody
    else changes them, and copy them aside."""
    steps = [o for o in getattr(optimizers, "optimizers", ()) if isinstance(o, torch.optim.Optimizer)]
    changed = {id(p) for each in steps for group in each.param_groups for p in group["params"]}
    return steps if all(id(p) in changed for part in model_parts for p in part.parameters()) else []
