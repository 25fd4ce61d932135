# SPDX-License-Identifier: Apache-2.0
"""A loop in torchtitan's style through Cairn, with FSDP2: run it, end it, run it again, with as many ranks as
you like.

    torchrun --nproc-per-node 2 --rdzv-id demo1 titan_style.py --job titan-demo --steps 20
    torchrun --nproc-per-node 3 --rdzv-id demo2 titan_style.py --job titan-demo --steps 40

Needs torch and a cairnd on this machine, not torchtitan (for which there is cairn.integrations.torchtitan).
Rank 0 prints the loss of each step.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.distributed as dist
from cairn.integrations.titan import CheckpointManager
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.fsdp import fully_shard

BATCH = 12  # rows of a step, whatever the number of ranks


class TrainState:
    """What the loop itself must not forget."""

    def __init__(self) -> None:
        self.step = 0
        self.losses: list[float] = []

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "losses": list(self.losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.losses = state["step"], list(state["losses"])


class Optimizer:
    """The optimizer's state by the names of parameters, so that any number of ranks can load it."""

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer

    def state_dict(self) -> dict[str, Any]:
        return get_optimizer_state_dict(self.model, self.optimizer)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        set_optimizer_state_dict(self.model, self.optimizer, state)


def build() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = torch.nn.Sequential(
        torch.nn.Linear(16, 64),
        torch.nn.Tanh(),
        torch.nn.Linear(64, 16),
        torch.nn.Tanh(),
        torch.nn.Linear(16, 1),
    )
    for layer in model:
        if isinstance(layer, torch.nn.Linear):
            fully_shard(layer)
    fully_shard(model)
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def train_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> float:
    """One step on this rank's rows; the mean loss of all ranks'."""
    x = torch.randn(BATCH, 16, generator=torch.Generator().manual_seed(step))
    mine = x[dist.get_rank() :: dist.get_world_size()]
    loss = (model(mine) - mine.sum(1, keepdim=True)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    return mean.item() / dist.get_world_size()


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--job", default="titan-demo", help="the job's name in Cairn")
    parser.add_argument("--steps", type=int, default=20, help="train up to this step")
    parser.add_argument("--every", type=int, default=10, help="steps between checkpoints")
    parser.add_argument(
        "--load-step", type=int, default=-1, help="resume from this step instead of the newest"
    )
    args = parser.parse_args()

    model, optimizer = build()
    state = TrainState()
    manager = CheckpointManager(
        args.job,
        {"model": model, "optimizer": Optimizer(model, optimizer), "train_state": state},
        interval=args.every,
    )
    manager.load(args.load_step)  # False on the first start
    resumed_from = state.step
    while state.step < args.steps:
        manager.maybe_wait_for_staging()
        state.step += 1
        state.losses.append(train_step(model, optimizer, state.step))
        if dist.get_rank() == 0:
            print(f"step {state.step} loss {state.losses[-1]:.9f}", flush=True)
        manager.save(state.step, last_step=state.step == args.steps)
    manager.close()
    return {"resumed_from": resumed_from, "losses": state.losses}


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main()
    dist.destroy_process_group()
