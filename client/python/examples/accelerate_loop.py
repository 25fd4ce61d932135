# SPDX-License-Identifier: Apache-2.0
"""Accelerate through Cairn: run it, end it, run it again, and it goes on from the newest checkpoint.

    python accelerate_loop.py --job accelerate-demo --steps 30
    python accelerate_loop.py --job accelerate-demo --steps 60

Needs accelerate and a cairnd on this machine; runs under `accelerate launch --cpu --num_processes 2` as well.
Prints the loss of each step.
"""

from __future__ import annotations

import argparse
import os
import tempfile

import torch
from accelerate import Accelerator
from cairn.integrations.accelerate import CairnState


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--job", default="accelerate-demo", help="the job's name in Cairn")
    parser.add_argument("--steps", type=int, default=30, help="train up to this step")
    parser.add_argument("--every", type=int, default=10, help="steps between checkpoints")
    parser.add_argument(
        "--dir",
        default=None,
        help="where save_state's directories are, of which Cairn needs a few bytes each",
    )
    args = parser.parse_args()
    directory = args.dir or tempfile.mkdtemp(prefix="cairn-accelerate-")

    accelerator = Accelerator(cpu=True)
    torch.manual_seed(1 + accelerator.process_index)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Dropout(0.1), torch.nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
    model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)

    state = CairnState(
        accelerator, args.job
    )  # the one line: save_state and load_state go through Cairn from here on
    start = state.load_latest(os.path.join(directory, "resume")) or 0
    for step in range(start + 1, args.steps + 1):
        x = torch.randn(32, 16)  # the generators' states are in the checkpoint
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        accelerator.backward(loss)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        accelerator.print(f"step {step} loss {loss.item():.9f}")
        if step % args.every == 0:
            accelerator.save_state(os.path.join(directory, f"step_{step}"))
    state.close()


if __name__ == "__main__":
    main()
