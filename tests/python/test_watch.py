# SPDX-License-Identifier: Apache-2.0
"""`cairn watch` beside the frameworks themselves: what they write is what it takes for complete, and what it gives back
they load.

Catches: a framework whose order of writing or names are not what the preset says.
"""
import filecmp
import json

import pytest

torch = pytest.importorskip("torch")


def once(cluster, job, directory, like):
    """The steps that a run of `cairn watch --once` committed."""
    done = cluster.cairn("watch", job, directory, "--like", like, "--once", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    return [e["step"] for e in events if e["event"] == "committed"]


def restored(cluster, job, step, to):
    done = cluster.cairn("restore", job, step, "--format", "files", "--to", to)
    assert done.returncode == 0, done.stdout + done.stderr


def same_files(a, b):
    names = sorted(str(p.relative_to(a)) for p in a.rglob("*") if p.is_file())
    assert names and names == sorted(str(p.relative_to(b)) for p in b.rglob("*") if p.is_file())
    assert filecmp.cmpfiles(a, b, names, shallow=False)[0] == names


def test_distributed_checkpoint(cluster, job, tmp_path):
    """torch.distributed.checkpoint's own writer and reader."""
    import torch.distributed.checkpoint as dcp

    state = {"model": torch.arange(100_000, dtype=torch.float32), "step": 7}
    dcp.save(state, checkpoint_id=tmp_path / "ckpt" / "step-7", no_dist=True)
    assert once(cluster, job, tmp_path / "ckpt", "dcp") == [7]
    restored(cluster, job, 7, tmp_path / "back")
    same_files(tmp_path / "ckpt" / "step-7", tmp_path / "back" / "step-7")
    empty = {"model": torch.zeros(100_000), "step": 0}
    dcp.load(empty, checkpoint_id=tmp_path / "back" / "step-7", no_dist=True)
    assert torch.equal(empty["model"], state["model"]) and empty["step"] == 7


def test_hugging_face_trainer(cluster, job, tmp_path):
    """The Trainer saves by itself, and resumes from what came back."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, i):
            ids = torch.full((4,), i)
            return {"input_ids": ids, "labels": ids}

    def trainer(out, steps):
        torch.manual_seed(1)
        config = transformers.GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=16, n_positions=8)
        arguments = transformers.TrainingArguments(str(out), max_steps=steps, save_steps=2, per_device_train_batch_size=4, report_to=[],
                                                   use_cpu=True, disable_tqdm=True, logging_steps=1)
        return transformers.Trainer(transformers.GPT2LMHeadModel(config), arguments, train_dataset=Rows())

    first = trainer(tmp_path / "out", 4)
    first.train()
    assert once(cluster, job, tmp_path / "out", "hf") == [2, 4]
    restored(cluster, job, 4, tmp_path / "back")
    same_files(tmp_path / "out" / "checkpoint-4", tmp_path / "back" / "checkpoint-4")
    second = trainer(tmp_path / "back", 4)
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == 4
    for a, b in zip(first.model.parameters(), second.model.parameters()):
        assert torch.equal(a, b)
