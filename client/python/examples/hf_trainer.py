# SPDX-License-Identifier: Apache-2.0
"""The Hugging Face Trainer through Cairn: run it, end it, run it again, and it goes on from the newest
checkpoint.

    python hf_trainer.py --job hf-demo --steps 20
    python hf_trainer.py --job hf-demo --steps 40

Needs transformers and accelerate and a cairnd on this machine. The model is made from a configuration and the
data from a seed: nothing is downloaded. Prints the loss of each step.
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from cairn.integrations.transformers import CairnCallback
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments


class PrintLoss(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **kwargs) -> None:  # type: ignore[no-untyped-def]
        if logs and "loss" in logs:
            print(f"step {state.global_step} loss {logs['loss']:.9f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--job", default="hf-demo", help="the job's name in Cairn")
    parser.add_argument("--steps", type=int, default=20, help="train up to this step")
    parser.add_argument("--every", type=int, default=10, help="steps between checkpoints")
    parser.add_argument("--dir", default=None, help="Trainer's output directory")
    args = parser.parse_args()

    torch.manual_seed(1)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
        )
    )
    rows = torch.randint(0, 64, (64, 32), generator=torch.Generator().manual_seed(2))
    arguments = TrainingArguments(
        output_dir=args.dir or tempfile.mkdtemp(prefix="cairn-hf-"),
        max_steps=args.steps,
        per_device_train_batch_size=8,
        logging_steps=1,
        save_strategy="no",
        lr_scheduler_type="constant",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    cairn = CairnCallback(args.job, every=args.every)
    data = [{"input_ids": row, "labels": row} for row in rows]
    trainer = Trainer(model, arguments, train_dataset=data, callbacks=[cairn, PrintLoss()])
    trainer.train(resume_from_checkpoint=cairn.resume(trainer))  # the one line: None on the first start
    cairn.close()


if __name__ == "__main__":
    main()
