# SPDX-License-Identifier: Apache-2.0
"""Lightning through Cairn: run it, end it, run it again, and it goes on from the newest checkpoint.

    python lightning_resume.py --job lightning-demo --steps 30
    python lightning_resume.py --job lightning-demo --steps 60

Needs lightning and a cairnd on this machine. Prints the loss of each step.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from typing import Any

import lightning.pytorch as L
import torch
from cairn.integrations.lightning import CairnCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint


class Regression(L.LightningModule):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(16, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, 1)
        )

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        # The step decides the data: Lightning does not skip what an epoch has read already when it resumes
        # within one.
        x = torch.randn(32, 16, generator=torch.Generator().manual_seed(self.global_step))
        loss = (self.net(x) - x.sum(1, keepdim=True)).square().mean()
        print(f"step {self.global_step + 1} loss {loss.item():.9f}")
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--job", default="lightning-demo", help="the job's name in Cairn")
    parser.add_argument("--steps", type=int, default=30, help="train up to this step")
    parser.add_argument("--every", type=int, default=10, help="steps between checkpoints")
    parser.add_argument(
        "--dir", default=None, help="where Lightning's paths are, of which Cairn fills a few bytes each"
    )
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")

    torch.manual_seed(1)
    directory = args.dir or tempfile.mkdtemp(prefix="cairn-lightning-")
    io = CairnCheckpointIO(args.job)
    trainer = L.Trainer(
        max_steps=args.steps,
        plugins=[io],
        accelerator="cpu",
        devices=1,
        logger=False,
        callbacks=[
            ModelCheckpoint(
                dirpath=directory, every_n_train_steps=args.every, save_top_k=2, monitor="step", mode="max"
            )
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = torch.utils.data.DataLoader(torch.arange(1000), batch_size=10)
    trainer.fit(
        Regression(hidden=32), batches, ckpt_path=io.latest()
    )  # the one line: None on the first start


if __name__ == "__main__":
    main()
