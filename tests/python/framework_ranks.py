# SPDX-License-Identifier: Apache-2.0
"""What the ranks of test_frameworks.py do. Several frameworks in one pair of processes: importing them is
most of the time."""

from __future__ import annotations

import itertools
import os
import pathlib
import runpy
import sys
import warnings

import torch
import torch.distributed as dist

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "client" / "python" / "examples"


def titan(job, steps, load_step=-1):
    """The example as it is, and what it returns. The process group is made if there is none."""
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    before, path = sys.argv, str(EXAMPLES / "titan_style.py")
    sys.argv = [path, "--job", job, "--steps", str(steps), "--every", "4", "--load-step", str(load_step)]
    try:
        return runpy.run_path(path)["main"]()
    finally:
        sys.argv = before


def all_of(job, directory):
    """The loop in torchtitan's style, Lightning's DDP, torchtitan's base class, Accelerate and the Trainer,
    one after the other."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = {"titan": titan(f"{job}-titan", 6)}
    for name in ("torch_checkpointing", "lightning", "torchtitan", "accelerate", "transformers"):
        found[name] = globals()[name](f"{job}-{name}", os.path.join(directory, name))
    dist.barrier()
    dist.destroy_process_group()
    return found


_starts = itertools.count(1)


def restart():
    """What a launcher does when it starts all ranks again: what a start resumes from is fixed for as long as
    it lives."""
    dist.barrier()  # every rank has closed its session
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(next(_starts))


def digest(state):
    """Of the bits of a flat state dict."""
    return [str(value.double().sum().item()) for value in state.values()]


def lightning(job, directory):
    import lightning.pytorch as L
    from cairn.integrations.lightning import CairnCheckpointIO

    class Model(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(8, 1)
            self.losses = []

        def training_step(self, batch, index):
            seed = self.global_step * 2 + self.global_rank
            loss = self.net(torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))).square().mean()
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=0.05)

    def fit(job, steps, path):
        torch.manual_seed(41)
        io, model = CairnCheckpointIO(job), Model()
        trainer = L.Trainer(
            max_steps=steps,
            plugins=[io],
            strategy="ddp",
            devices=2,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            callbacks=[
                L.callbacks.ModelCheckpoint(dirpath=os.path.join(directory, job), every_n_train_steps=3)
            ],
        )
        data = torch.utils.data.DataLoader(torch.arange(100), batch_size=4)
        trainer.fit(model, data, ckpt_path=path)
        return model

    whole = fit(job + "-a", 6, None)
    fit(job + "-b", 3, None)
    resumed = fit(job + "-b", 6, "cairn:latest")
    return {
        "whole": whole.losses[3:],
        "resumed": resumed.losses,
        "end": digest(whole.state_dict()) == digest(resumed.state_dict()),
    }


def torchtitan(job, directory):
    """The real BaseCheckpointManager and its Config, as torchtitan's Trainer builds and uses them."""
    from cairn.integrations.torchtitan import CairnCheckpointManager
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
    from torch.distributed.fsdp import fully_shard

    class Optimizers:
        def __init__(self, model, optimizer):
            self.model, self.optimizers = model, [optimizer]

        def state_dict(self):
            return get_optimizer_state_dict(self.model, *self.optimizers)

        def load_state_dict(self, state):
            set_optimizer_state_dict(self.model, *self.optimizers, state)

    class State:
        step = 0

        def state_dict(self):
            return {"step": self.step}

        def load_state_dict(self, state):
            self.step = state["step"]

    def run(job, steps):
        restart()
        torch.manual_seed(51)
        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 1))
        fully_shard(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
        state, losses = State(), []
        config = CairnCheckpointManager.Config(
            enable=True, job=job, interval=3, keep_latest_k=2, last_save_model_only=steps == 7
        )
        manager = config.build(
            dataloader=None,
            model_parts=[model],
            optimizers=Optimizers(model, optimizer),
            lr_schedulers=schedule,
            states={"train_state": state},
            sd_adapter=None,
            base_folder=directory,
        )
        assert manager._manager.checkpointer._devices._attached == [optimizer]
        loaded = manager.load()
        while state.step < steps:
            manager.maybe_wait_for_staging()
            state.step += 1
            x = torch.randn(4, 8, generator=torch.Generator().manual_seed(state.step * 2 + dist.get_rank()))
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(loss.item())
            manager.save(state.step, last_step=state.step == steps)
            manager.maybe_wait_for_saving()
        manager.close()
        return loaded, losses

    fresh, whole = run(job + "-a", 6)
    run(job + "-b", 3)
    again, resumed = run(job + "-b", 6)
    run(job + "-c", 7)  # the last one holds the model only
    return {"fresh": fresh, "again": again, "whole": whole[3:], "resumed": resumed}


def accelerate(job, directory):
    from accelerate import Accelerator
    from cairn.integrations.accelerate import CairnState

    accelerator = Accelerator(cpu=True)
    torch.manual_seed(61 + accelerator.process_index)
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    model, optimizer = accelerator.prepare(model, optimizer)
    state = CairnState(accelerator, job)

    def train(steps):
        losses = []
        for _ in range(steps):
            loss = model(torch.randn(4, 8)).square().mean()  # each rank's own generator
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    train(3)
    accelerator.save_state(os.path.join(directory, "step_3"))
    state._shelf.wait(60)
    whole = train(3)
    accelerator.load_state(os.path.join(directory, "step_3"))
    resumed = train(3)
    accelerator.wait_for_everyone()
    state.close()
    return {"whole": whole, "resumed": resumed}


def transformers(job, directory):
    from cairn.integrations.transformers import CairnCallback
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    def run(steps):
        restart()
        torch.manual_seed(71)
        config = GPT2Config(
            vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0
        )
        rows = torch.randint(0, 16, (32, 8), generator=torch.Generator().manual_seed(72))
        arguments = TrainingArguments(
            output_dir=directory,
            max_steps=steps,
            per_device_train_batch_size=4,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            lr_scheduler_type="constant",
        )
        callback = CairnCallback(job, every=3)
        trainer = Trainer(
            GPT2LMHeadModel(config),
            arguments,
            train_dataset=[{"input_ids": r, "labels": r} for r in rows],
            callbacks=[callback],
        )
        path = callback.resume(trainer)
        trainer.train(resume_from_checkpoint=path)
        callback.close()
        return (
            path,
            [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
            digest(trainer.model.state_dict()),
        )

    first, whole, end = run(5)  # saves step 3
    path, resumed, again = run(5)
    return {"first": first, "path": path is not None, "whole": whole, "resumed": resumed, "end": end == again}


def torch_checkpointing(job, directory):
    """Each rank's own files, committed together. (The package's resharders need CUDA in a world of more than one.)"""
    from cairn.integrations.torch_checkpointing import configure
    from torch_checkpointing import CheckpointManager, SyncCheckpointSaverConfig

    manager = CheckpointManager(configure(CheckpointManager.Config(save=SyncCheckpointSaverConfig()), job))
    mine = torch.arange(1000.0) + dist.get_rank()
    manager.save("step_5", {"model": {"weight": mine}})
    loaded = {"weight": torch.zeros(1000)}
    manager.load("step_5", into={"model": loaded})
    manager.close()
    return {"own": torch.equal(loaded["weight"], mine)}
