# SPDX-License-Identifier: Apache-2.0
"""The integrations against the real packages: each trains a tiny model once without a break, and once with a
break from which it resumes through Cairn; the losses after the break and the weights at the end must be the
same bits.

A package that is not installed skips its tests, with the reason.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import json
import os
import pathlib
import random
import runpy
import sys
import tempfile
import warnings

import pytest

torch = pytest.importorskip("torch")
import cairn  # noqa: E402
from cairn.checkpointer import read  # noqa: E402
from cairn.integrations import _plain, _pointer, _rng  # noqa: E402
from cairn.integrations._shelf import Shelf, find  # noqa: E402
from ranks import run_ranks  # noqa: E402

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "client" / "python" / "examples"


@pytest.fixture(autouse=True)
def quiet():
    """One thread, so that sums are made in one order; and no pages of the frameworks' own advice."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield


def committed(cluster, job):
    answer = cluster.cairn("ls", job, "--json")
    assert answer.returncode == 0, answer.stderr
    return sorted(c["step"] for c in json.loads(answer.stdout)["checkpoints"] if c["state"] == "committed")


def same(a, b):
    """Whether two states are the same bits."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


# ---- what frameworks put beside tensors ----


class Colour(enum.Enum):
    RED = "red"


def test_plain_values_come_back():
    value = {
        "namespace": argparse.Namespace(lr=0.1, layers=[1, 2], nested=argparse.Namespace(a=None)),
        "enum": Colour.RED,
        "when": datetime.datetime(2026, 1, 2, 3, 4, 5),
        "long": datetime.timedelta(seconds=90),
        "path": pathlib.Path("/a/b"),
        "milestones": collections.Counter({30: 1, 80: 2}),
        "recent": collections.deque([1, 2], maxlen=3),
        "ordered": collections.OrderedDict(b=1, a=2),
        ("tuple", 1): {"scores": {"/x/epoch=1.ckpt": torch.tensor(0.5)}},
        "__cairn_type__": "a user's own key",
        "bf16": torch.tensor([[1.5, -0.0]], dtype=torch.bfloat16),
    }
    there = _plain.encode(value)
    back = _plain.decode(there)
    assert same(back.pop("bf16"), value.pop("bf16")) and same(back.pop(("tuple", 1)), value.pop(("tuple", 1)))
    assert back == value and back["recent"].maxlen == 3 and list(back["ordered"]) == ["b", "a"]
    assert "tensor" not in str(there).replace(
        "'tensor'", ""
    )  # small ones are values now, not tensors by changing names


def test_schedulers_of_torch_pass(cluster, job):
    """Through a plain Checkpointer, in place and made anew: each gives the same rates afterwards."""
    schedulers = torch.optim.lr_scheduler
    kinds = {
        "steps": lambda o: schedulers.MultiStepLR(o, [2, 4, 4], 0.5),
        "cosine": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 3),
        "one": lambda o: schedulers.OneCycleLR(o, 0.1, 20),
        "cyclic": lambda o: schedulers.CyclicLR(o, 0.01, 0.1, cycle_momentum=False),
        "lambda": lambda o: schedulers.LambdaLR(o, lambda n: 0.9**n),
        "sequence": lambda o: schedulers.SequentialLR(
            o, [schedulers.ConstantLR(o, 0.1), schedulers.ExponentialLR(o, 0.9)], [3]
        ),
        "plateau": lambda o: schedulers.ReduceLROnPlateau(o, patience=0),
    }

    def make():
        made = {}
        for name, kind in kinds.items():
            optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
            made[name] = kind(optimizer), optimizer
        return made

    def run(made, steps):
        rates = []
        for _ in range(steps):
            for scheduler, optimizer in made.values():
                optimizer.step()
                scheduler.step(*[1.0] * isinstance(scheduler, schedulers.ReduceLROnPlateau))
                rates.append(optimizer.param_groups[0]["lr"])
        return rates

    def state(made):
        return {f"{name}.{i}": each for name, both in made.items() for i, each in enumerate(both)}

    with cairn.Checkpointer(job, 0, 1, raise_errors=True) as checkpointer:
        first = make()
        run(first, 3)
        checkpointer.save(3, state(first), wait="committed")
        expected = run(first, 4)
        again = make()
        checkpointer.load(state(again), 3)
        assert run(again, 4) == expected
        made = checkpointer.load_tree(3)
        assert made["steps.0"]["milestones"] == collections.Counter({2: 1, 4: 2})


def test_enum_of_a_class_that_is_not_imported_is_its_value():
    """A checkpoint must not decide what is imported: an import in _decode_enum would make this fail."""
    there = _plain.encode(Colour.RED)
    there["value"][0] = "this_module_is_not_imported"
    with pytest.warns(RuntimeWarning, match="not imported"):
        assert _plain.decode(there) == "red"


def test_generators_come_back():
    numpy = pytest.importorskip("numpy")
    random.seed(1), numpy.random.seed(2), torch.manual_seed(3)
    random.gauss(0, 1), numpy.random.randn()
    state = _rng.capture()
    expected = random.gauss(0, 1), random.random(), numpy.random.randn(), numpy.random.rand(), torch.rand(3)
    random.seed(9), numpy.random.seed(9), torch.manual_seed(9)
    _rng.apply(state)
    assert same(
        expected,
        (random.gauss(0, 1), random.random(), numpy.random.randn(), numpy.random.rand(), torch.rand(3)),
    )


# ---- paths ----


def test_paths_are_steps(cluster, job, tmp_path):
    """Two paths at one step are two checkpoints; a path that is overwritten keeps the one before until the
    next."""
    best, last = str(tmp_path / "best.ckpt"), str(tmp_path / "sub" / "last.ckpt")
    with cairn.Checkpointer(job, 0, 1) as checkpointer:
        shelf = Shelf(checkpointer)
        assert shelf.save(best, 10, {"x": torch.tensor([1.0])}).step == 10
        assert shelf.save(last, 10, {"x": torch.tensor([2.0])}).step == 11
        assert shelf.save(last, 20, {"x": torch.tensor([3.0])}).step == 20
        assert shelf.save(last, 30, {"x": torch.tensor([4.0])}).step == 30
        shelf.wait(30)
        shelf.close()
        assert committed(cluster, job) == [10, 20, 30]  # 11 was two behind
        with checkpointer.observe() as session:
            assert find(best, session).step == 10 and find(last, session).step == 30
        shelf.remove(best)
        assert not os.path.exists(best)
        shelf.close()
        assert committed(cluster, job) == [20, 30]
    # A second start that goes back to an earlier step does not take a number that is taken.
    with cairn.Checkpointer(job, 0, 1) as checkpointer:
        assert Shelf(checkpointer).save(best, 20, {"x": torch.tensor([5.0])}).step == 21


def test_pointer_to_what_was_never_committed(cluster, job, tmp_path):
    path = str(tmp_path / "last.ckpt")
    with cairn.Checkpointer(job, 0, 1) as checkpointer:
        shelf = Shelf(checkpointer)
        good = shelf.save(path, 1, {"x": torch.tensor([1.0])})
        shelf.wait(30)
        lost = _pointer.Pointer(job, 2, good.incarnation)  # as a node that died before the commit leaves it
        _pointer.write(path, lost, [good])
        with checkpointer.observe() as session:
            with pytest.warns(RuntimeWarning, match="never committed"):
                assert find(path, session) == good
            _pointer.write(path, lost)
            with pytest.raises(cairn.NotFoundError, match="step 2.*the newest of the job is step 1"):
                find(path, session)
            (tmp_path / "torch.ckpt").write_bytes(b"PK\3\4 not a pointer")
            with pytest.raises(ValueError, match="not a pointer"):
                find(str(tmp_path / "torch.ckpt"), session)


# ---- Lightning ----


def lightning_parts(job, directory, **io_options):
    """A model with dropout and hyper-parameters of kinds that need converting, and a CheckpointIO."""
    L = pytest.importorskip("lightning.pytorch")
    from cairn.integrations.lightning import CairnCheckpointIO

    class Model(L.LightningModule):
        def __init__(self, args):
            super().__init__()
            self.save_hyperparameters()
            self.net = torch.nn.Sequential(
                torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.Linear(16, 1)
            )
            self.losses = []

        def training_step(self, batch, index):
            # Lightning does not skip what an epoch has read when it resumes within one: the data follows the
            # step instead.
            data = torch.randn(4, 8, generator=torch.Generator().manual_seed(self.global_step))
            loss = self.net(data).square().mean()
            self.losses.append(loss.item())
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.args.lr)
            return [optimizer], [
                {"scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 7]), "interval": "step"}
            ]

    def trainer(steps, every, io, **options):
        callback = L.callbacks.ModelCheckpoint(
            dirpath=directory,
            every_n_train_steps=every,
            monitor="loss",
            mode="min",
            save_top_k=2,
            save_last=True,
        )
        return L.Trainer(
            max_steps=steps,
            plugins=[io],
            callbacks=[callback],
            logger=False,
            enable_progress_bar=False,
            accelerator="cpu",
            devices=1,
            enable_model_summary=False,
            log_every_n_steps=1,
            **options,
        )

    def data():
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.arange(48)), batch_size=4)

    def model():
        torch.manual_seed(11)
        return Model(argparse.Namespace(lr=0.05, colour=Colour.RED, root=pathlib.Path("/data")))

    return CairnCheckpointIO(job, **io_options), model, trainer, data


def test_lightning_resumes(cluster, job, tmp_path):
    io, model, trainer, data = lightning_parts(job, tmp_path / "through")
    whole = model()
    trainer(12, 4, io).fit(whole, data(), ckpt_path=io.latest())
    assert io.latest() == "cairn:latest"
    # last.ckpt and the best ones were saved, and what ModelCheckpoint removed is gone from Cairn
    files = sorted(p.name for p in (tmp_path / "through").iterdir())
    assert "last.ckpt" in files and len(files) == 3
    named = {p.step for name in files for p in _pointer.read(str(tmp_path / "through" / name))[:1]}
    assert named <= set(committed(cluster, job)) and len(committed(cluster, job)) <= 4

    io, model, trainer, data = lightning_parts(job + "-b", tmp_path / "broken")
    trainer(8, 4, io).fit(model(), data())
    resumed = model()
    torch.nn.init.zeros_(resumed.net[0].weight)  # must come from the checkpoint
    trainer(12, 4, io).fit(resumed, data(), ckpt_path="last")
    assert resumed.losses == whole.losses[8:]
    assert same(resumed.state_dict(), whole.state_dict())
    state = io.load_checkpoint(str(tmp_path / "broken" / "last.ckpt"))
    assert state["hyper_parameters"]["args"] == argparse.Namespace(
        lr=0.05, colour=Colour.RED, root=pathlib.Path("/data")
    )
    assert state["global_step"] == 12


# ---- Hugging Face Trainer ----


class ScheduledLosses:
    """Records each step's loss out of the Trainer's own log."""

    @staticmethod
    def of(trainer):
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def hf_trainer(directory, callback, steps, **arguments):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(21)
    config = transformers.GPT2Config(
        vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    generator = torch.Generator().manual_seed(22)
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(0, 32, (24, 16), generator=generator)]
    options = {
        "output_dir": str(directory),
        "max_steps": steps,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "learning_rate": 1e-2,
        "logging_nan_inf_filter": False,
        "seed": 23,
        **arguments,
    }
    return transformers.Trainer(
        transformers.GPT2LMHeadModel(config),
        transformers.TrainingArguments(**options),
        train_dataset=rows,
        eval_dataset=rows,
        callbacks=[callback],
    )


def test_transformers_resumes(cluster, job, tmp_path):
    pytest.importorskip("transformers")
    from cairn.integrations.transformers import CairnCallback

    evaluation = {"eval_strategy": "steps", "eval_steps": 4}
    through = CairnCallback(job, every=4)
    whole = hf_trainer(tmp_path / "a", through, 10, **evaluation)
    assert through.resume(whole) is None
    whole.train()
    through.close()
    assert committed(cluster, job) == [4, 8]

    # dies after step 9; 24 rows in batches of 4: step 8 is the second step of the second epoch, shuffled
    saving = CairnCallback(job + "-b", every=4)
    broken = hf_trainer(tmp_path / "b", saving, 10, **evaluation)
    saving.resume(broken)

    class Death(Exception):
        pass

    import transformers

    class Killer(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 9:
                raise Death

    broken.add_callback(Killer())
    with pytest.raises(Death):
        broken.train()
    saving.close()
    after = CairnCallback(job + "-b", every=4)
    resumed = hf_trainer(tmp_path / "b", after, 10, **evaluation)
    torch.nn.init.zeros_(resumed.model.transformer.wte.weight)
    directory = after.resume(resumed)
    assert os.path.isdir(directory)
    resumed.train(resume_from_checkpoint=directory)
    assert not os.path.exists(directory)
    after.close()
    assert ScheduledLosses.of(resumed) == ScheduledLosses.of(whole) and len(ScheduledLosses.of(whole)) == 10
    assert same(resumed.model.state_dict(), whole.model.state_dict())
    # tied weights are stored once
    shown = json.loads(cluster.cairn("show", job, 8, "--json").stdout)
    names = [t["name"] for t in shown["tensors"]]
    assert ("model.lm_head.weight" in names) != ("model.transformer.wte.weight" in names)


def test_transformers_saves_when_trainer_does(cluster, job, tmp_path):
    pytest.importorskip("transformers")
    from cairn.integrations.transformers import CairnCallback

    callback = CairnCallback(job)
    hf_trainer(tmp_path, callback, 3, save_strategy="steps", save_steps=2, save_only_model=True).train()
    callback.close()
    assert committed(cluster, job) == [2, 3]
    assert json.loads(read(job, 3)["trainer_state"])["global_step"] == 3


# ---- Accelerate ----


def accelerated(seed):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Dropout(0.2), torch.nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)

    class Counter:
        batches = 0

        def state_dict(self):
            return {"batches": self.batches, "rate": argparse.Namespace(lr=0.05)}

        def load_state_dict(self, state):
            assert state["rate"] == argparse.Namespace(lr=0.05)
            self.batches = state["batches"]

    counter = Counter()
    accelerator.register_for_checkpointing(counter)

    def train(steps):
        losses = []
        for _ in range(steps):
            data = torch.randn(4, 8)  # from the generator that the checkpoint restores
            loss = model(data).square().mean()
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            counter.batches += 1
            losses.append(loss.item())
        return losses

    return accelerator, model, counter, train


def test_accelerate_resumes(cluster, job, tmp_path):
    pytest.importorskip("accelerate")
    from cairn.integrations.accelerate import CairnState

    accelerator, model, counter, train = accelerated(31)
    state = CairnState(accelerator, job)
    train(4)
    accelerator.save_state(str(tmp_path / "step_4"))
    assert not list((tmp_path / "step_4").glob("*.safetensors"))  # Cairn has the weights
    assert torch.load(tmp_path / "step_4" / "optimizer.bin") == {}
    assert accelerator._optimizers[0].state_dict()["state"]  # the class's own method is back
    expected, end = train(4), {k: v.clone() for k, v in model.state_dict().items()}

    accelerator.load_state(str(tmp_path / "step_4"))  # in the same process
    assert counter.batches == 4
    assert train(4) == expected and same(dict(model.state_dict()), end)
    state.close()

    accelerator, model, counter, train = accelerated(99)  # another start, another directory
    state = CairnState(accelerator, job)
    assert state.load_latest(str(tmp_path / "elsewhere")) == 4
    assert counter.batches == 4
    assert train(4) == expected and same(dict(model.state_dict()), end)
    with pytest.raises(cairn.InvalidError, match="holds 1 registered objects and the Accelerator 2"):
        accelerator.register_for_checkpointing(counter)
        accelerator.load_state(str(tmp_path / "step_4"))
    state.close()


# ---- what fails ----


def test_daemon_that_is_not_there(cluster, job, tmp_path):
    """Training goes on; no path says that there is a checkpoint; a resume says what to do."""
    pytest.importorskip("lightning"), pytest.importorskip("accelerate")
    from cairn.checkpointer import SaveFailedWarning
    from cairn.integrations.accelerate import CairnState

    accelerator, model, counter, train = accelerated(31)
    state = CairnState(accelerator, job, timeout=1.0)
    directory = tmp_path / "step"  # without a number: saved to again and again
    accelerator.save_state(str(directory))
    assert (directory / "cairn.json").exists()
    train(2)
    cluster.kill()
    try:
        with pytest.warns(SaveFailedWarning, match="training goes on"):
            accelerator.save_state(str(directory))
        assert not (directory / "cairn.json").exists()  # or a load would go back to the save before
        expected, here = train(2), counter.batches
        accelerator.load_state(str(directory))  # Accelerate's own files
        assert counter.batches == here - 2 and train(2) == expected

        io, model, trainer, data = lightning_parts(job + "-l", tmp_path / "l", timeout=1.0)
        with pytest.warns(SaveFailedWarning, match="training goes on"):
            trainer(6, 2, io).fit(model(), data())
        assert not list((tmp_path / "l").glob("*.ckpt"))
        with pytest.raises(cairn.UnavailableError, match="cairnd"):
            io.latest()
    finally:
        cluster.restart()
    state.close()


def test_values_that_do_not_pass_are_named(cluster, job, tmp_path):
    """A lambda among the hyper-parameters: the save fails and says where it is, training goes on."""
    pytest.importorskip("lightning")
    from cairn.checkpointer import SaveFailedWarning
    from cairn.integrations.lightning import CairnCheckpointIO

    io = CairnCheckpointIO(job)
    with pytest.warns(SaveFailedWarning, match=r"hyper_parameters.*activation.*function"):
        io.save_checkpoint(
            {"global_step": 1, "hyper_parameters": {"activation": lambda x: x}}, str(tmp_path / "a.ckpt")
        )
    assert not (tmp_path / "a.ckpt").exists()
    with pytest.raises(ValueError, match="local directory"):
        io.save_checkpoint({"global_step": 2}, "s3://bucket/a.ckpt")
    with pytest.raises(FileNotFoundError):
        io.load_checkpoint(str(tmp_path / "a.ckpt"))
    io.teardown()


# ---- torch_checkpointing ----


def storage_manager(job, save, **options):
    pytest.importorskip("torch_checkpointing")
    from cairn.integrations.torch_checkpointing import configure
    from torch_checkpointing import CheckpointManager, ItemSpec
    from torch_checkpointing.checkpoint_layout import JsonSerialization, LayoutInfo

    items = {
        "model": ItemSpec(),
        "step": ItemSpec(requires_copy=False, layout=LayoutInfo("step.json", JsonSerialization())),
    }
    return CheckpointManager(configure(CheckpointManager.Config(items=items, save=save), job, **options))


def torch_checkpointing_saves(job, save):
    module = torch.nn.Linear(300, 400)
    manager = storage_manager(job, save)
    done = manager.save("runs/step_7", {"model": module.state_dict(), "step": {"at": 7}})
    if done is not None:
        done.result(60)
    saved = {k: v.clone() for k, v in module.state_dict().items()}
    torch.nn.init.zeros_(module.weight)
    loaded = manager.load("elsewhere/step_7", into={"model": module.state_dict(), "step": None})
    assert same(dict(module.state_dict()), saved) and loaded["step"] == {"at": 7}
    with pytest.raises(FileNotFoundError, match="step_8"):
        manager.load("step_8", into={"model": module.state_dict(), "step": None})
    manager.close()


def test_torch_checkpointing_sync(cluster, job):
    pytest.importorskip("torch_checkpointing")
    from torch_checkpointing import SyncCheckpointSaverConfig

    torch_checkpointing_saves(job, SyncCheckpointSaverConfig())
    assert committed(cluster, job) == [7]


def test_torch_checkpointing_async(cluster, job):
    """Saved by the package's own background process."""
    pytest.importorskip("torch_checkpointing")
    from torch_checkpointing import AsyncCheckpointSaverConfig, CheckpointStagerConfig

    staging = CheckpointStagerConfig(use_pinned_memory=False, use_non_blocking_copy=False)
    torch_checkpointing_saves(job, AsyncCheckpointSaverConfig(staging_config=staging))
    assert committed(cluster, job) == [7]


def test_torch_checkpointing_storage(cluster, job):
    """The table of Storage.rename and reads at places, of which CheckpointManager uses only some."""
    pytest.importorskip("torch_checkpointing")
    from cairn.integrations.torch_checkpointing import CairnStorageConfig
    from torch_checkpointing.storage.base_storage import ReadArgs

    path = pathlib.Path
    data = os.urandom(3 << 20)
    storage = CairnStorageConfig(job, timeout=30).create_storage()
    storage.write(path("tmp_step_1/a.bin"), data)
    with storage.stream_write(path("tmp_step_1/empty")):
        pass
    with pytest.raises(ZeroDivisionError), storage.stream_write(path("tmp_step_1/half")) as half:
        half.write(b"x" * (1 // 0))
    assert storage.ls(path("tmp_step_1")) == ["a.bin", "empty"] and not storage.exists(path("step_1"))
    storage.rename(path("tmp_step_1"), path("step_1"), is_directory=True)
    assert (
        not storage.exists(path("tmp_other/x"))
        and storage.isdir(path("step_1"))
        and not storage.isdir(path("step_1/a.bin"))
    )
    assert storage.ls(path("step_1")) == ["a.bin", "empty"]
    assert storage.read(path("step_1/a.bin")) == data and storage.read(path("step_1/empty")) == b""
    assert storage.getsize(path("step_1/a.bin")) == len(data)
    with storage.stream_read(path("step_1/a.bin"), ReadArgs(pre_read_full_file=False)) as stream:
        stream.seek(-5, os.SEEK_END)
        assert stream.read() == data[-5:] and stream.read(1) == b""
        stream.seek(1 << 20)
        assert stream.read(7) == data[1 << 20 : (1 << 20) + 7] and stream.tell() == (1 << 20) + 7
        assert stream.read(9) == data[(1 << 20) + 7 : (1 << 20) + 16]
    storage.write(path("tmp_step_1/a.bin"), b"again")
    with pytest.raises(FileExistsError):
        storage.rename(path("tmp_step_1"), path("step_1"), is_directory=True)
    with pytest.raises(OSError, match="only the checkpoint"):
        storage.delete(path("step_1/a.bin"))
    with pytest.raises(cairn.DeniedError, match="newest"):
        storage.rmdir(path("step_1"))
    storage.write(path("step_2/a.bin"), b"later")
    storage.commit(path("step_2"))
    storage.rmdir(path("step_1"))
    assert not storage.exists(path("step_1")) and storage.read(path("step_2/a.bin")) == b"later"
    with pytest.raises(FileNotFoundError):
        storage.read(path("step_1/a.bin"))
    with pytest.raises(ValueError, match="must end in the step"):
        storage.write(path("last/a.bin"), b"x"), storage.commit(path("last"))


# ---- the examples, as they are ----


@pytest.mark.parametrize(
    "name, package",
    [
        ("lightning_resume", "lightning"),
        ("hf_trainer", "transformers"),
        ("accelerate_loop", "accelerate"),
        ("torch_checkpointing_storage", "torch_checkpointing"),
    ],
)
def test_example(cluster, job, capsys, monkeypatch, name, package):
    """Ten steps, ended, and on to twenty: the losses are those of twenty steps without a break."""
    pytest.importorskip(package)
    monkeypatch.setattr(tempfile, "tempdir", str(cluster.root))

    def losses(job, steps):
        monkeypatch.setattr(sys, "argv", [name, "--job", job, "--steps", str(steps), "--every", "5"])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]

    whole = losses(job + "-a", 20)
    broken = losses(job + "-b", 10) + losses(job + "-b", 20)
    assert broken == whole and len(whole) == 20


# ---- ranks ----


def test_ranks(cluster, job, tmp_path):
    """Lightning DDP, torchtitan on FSDP2, Accelerate and the Trainer on two ranks (gloo), and FSDP2 from two
    ranks to three."""
    for package in ("lightning", "torchtitan", "accelerate", "transformers"):
        pytest.importorskip(package)
    results = run_ranks(2, "framework_ranks:all_of", {"job": job, "directory": str(tmp_path)}, timeout=110)
    for found in results:
        for name in ("lightning", "torchtitan", "accelerate", "transformers"):
            assert found[name]["resumed"] == found[name]["whole"] and found[name]["whole"], name
        assert found["torch_checkpointing"] == {"own": True}
        assert found["lightning"]["end"] and found["transformers"]["end"]
        assert (found["torchtitan"]["fresh"], found["torchtitan"]["again"]) == (False, True)
        assert found["transformers"]["first"] is None and found["transformers"]["path"]
    assert (
        results[0]["accelerate"]["whole"] != results[1]["accelerate"]["whole"]
    )  # generators were each rank's own
    last = read(job + "-torchtitan-c", 7)
    assert set(last) == {"model"} and committed(cluster, job + "-torchtitan-c")[-1] == 7
    # The loop in torchtitan's style goes on with three ranks from what two have saved.
    whole = results[0]["titan"]
    assert whole["resumed_from"] == 0 and committed(cluster, job + "-titan") == [4, 6]
    more = run_ranks(
        3, "framework_ranks:titan", {"job": job + "-titan", "steps": 6, "load_step": 4}, timeout=60
    )
    for found in more:
        assert found["resumed_from"] == 4 and found["losses"][:4] == whole["losses"][:4]
        assert found["losses"][4:] == pytest.approx(whole["losses"][4:], rel=1e-4)
