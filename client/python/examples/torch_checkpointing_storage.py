# SPDX-License-Identifier: Apache-2.0
"""torch_checkpointing with Cairn as its storage: run it, end it, run it again, and it goes on from the newest
checkpoint.

    python torch_checkpointing_storage.py --job tc-demo --steps 30
    python torch_checkpointing_storage.py --job tc-demo --steps 60

Needs torch_checkpointing and a cairnd on this machine. Prints the loss of each step.
"""

from __future__ import annotations

import argparse

import cairn
import torch
from cairn.integrations.torch_checkpointing import configure
from torch_checkpointing import CheckpointManager, SyncCheckpointSaverConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--job", default="tc-demo", help="the job's name in Cairn")
    parser.add_argument("--steps", type=int, default=30, help="train up to this step")
    parser.add_argument("--every", type=int, default=10, help="steps between checkpoints")
    args = parser.parse_args()

    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    config = CheckpointManager.Config(save=SyncCheckpointSaverConfig())
    manager = CheckpointManager(configure(config, args.job))  # the one line: its storage is a Cairn job

    with cairn.Session(args.job, observer=True) as session:
        start = session.latest() or 0
    if start:
        loaded = manager.load(f"step_{start}", into={"model": model.state_dict(), "optimizer": None})
        optimizer.load_state_dict(loaded["optimizer"])
    for step in range(start + 1, args.steps + 1):
        x = torch.randn(32, 16, generator=torch.Generator().manual_seed(step))
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step} loss {loss.item():.9f}")
        if step % args.every == 0:
            manager.save(f"step_{step}", {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    manager.close()


if __name__ == "__main__":
    main()
