# SPDX-License-Identifier: Apache-2.0
"""What users get wrong, and what goes wrong under them: the error says what was tried, on what, and what to do; nothing is lost."""
import os
import subprocess
import sys
import warnings

import pytest
import torch

import cairn
from cairn import launch

STATE = {"model": {"w": torch.arange(12.0).view(3, 4), "b": torch.ones(3)}, "step": 7, "sched": {"lr": [0.1, 0.2]}}


@pytest.fixture(scope="module")
def saved(cluster):
    """A job with a checkpoint."""
    with cairn.Checkpointer("saved", raise_errors=True) as ckpt:
        ckpt.save(1, STATE, wait="committed", timeout=30)
    return "saved"


@pytest.fixture(scope="module")
def ckpt(saved):
    with cairn.Checkpointer(saved, raise_errors=True) as c:
        yield c


def fresh():
    return {"model": {"w": torch.zeros(3, 4), "b": torch.zeros(3)}, "step": 0, "sched": {"lr": [0.0, 0.0]}}


# ---- loading what does not fit ----


def without(state, *path):
    inner = state
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return state


@pytest.mark.parametrize("change, said", [
    (lambda s: without(s, "model", "b"), r"in the checkpoint and not in the state \(1\): model\.b.*strict=False"),
    (lambda s: without(s, "step"), r"in the checkpoint and not in the state \(1\): step"),
    (lambda s: s["model"].update(c=torch.zeros(1)) or s, r"in the state and not in the checkpoint \(1\): model\.c"),
    (lambda s: s.update(epoch=3, more={"x": 1}) or s, r"in the state and not in the checkpoint \(2\): epoch, more\.x"),
    (lambda s: s["model"].update(w=torch.zeros(4, 3)) or s, r"model\.w is F32 \[4, 3\] in the state and F32 \[3, 4\] in the checkpoint"),
    (lambda s: s["model"].update(w=torch.zeros(3, 4, dtype=torch.bfloat16)) or s, r"model\.w is BF16 \[3, 4\] in the state and F32"),
    (lambda s: s["model"].update(w=torch.zeros(3, 4, dtype=torch.complex128)) or s, r"model\.w is complex128 \[3, 4\] in the state and F32"),
    (lambda s: s.update(step=torch.zeros(1)) or s, "step is a tensor in the state and a int in the checkpoint"),
    (lambda s: s.update(model=[torch.zeros(1)]) or s, "model is a list in the state and a dict in the checkpoint"),
    (lambda s: s.update(sched=torch.zeros(1)) or s, "sched is a tensor in the state and a dict in the checkpoint"),
])
def test_a_load_that_does_not_fit_changes_nothing(ckpt, change, said):
    state = change(fresh())
    with pytest.raises(cairn.InvalidError, match=f"load step 1 of job saved: .*{said}"):
        ckpt.load(state)
    model = state["model"]
    assert isinstance(model, list) or all(v.count_nonzero() == 0 for v in model.values())
    assert "step" not in state or state["step"] == 0


def test_all_problems_are_listed_at_once_but_not_a_thousand(ckpt):
    state = {"model": {f"x{i}": torch.zeros(1) for i in range(1000)}}
    with pytest.raises(cairn.InvalidError) as e:
        ckpt.load(state)
    assert "(1000)" in str(e.value) and "and 980 more" in str(e.value) and "model.w" in str(e.value) and len(str(e.value)) < 2000


def test_not_strict_takes_what_there_is(ckpt):
    state = {"model": {"w": torch.zeros(3, 4), "c": torch.full((2,), 5.0)}, "epoch": 3}
    assert ckpt.load(state, strict=False) == 1
    assert torch.equal(state["model"]["w"], STATE["model"]["w"]) and state["model"]["c"].tolist() == [5, 5] and state["epoch"] == 3
    with pytest.raises(cairn.InvalidError, match="F32"):  # another shape is no missing name
        ckpt.load({"model": {"w": torch.zeros(5)}}, strict=False)


@pytest.mark.parametrize("rename", [{"net": "model", "net.weight": "model.w", "count": "step"},
                                    lambda n: {"net.weight": "model.w", "count": "step"}.get(n, n.replace("net", "model"))])
def test_renames(ckpt, rename):
    state = {"net": {"weight": torch.zeros(3, 4), "b": torch.zeros(3)}, "count": 0, "sched": {"lr": []}}
    assert ckpt.load(state, rename=rename) == 1
    assert torch.equal(state["net"]["weight"], STATE["model"]["w"]) and state["count"] == 7 and state["sched"]["lr"] == [0.1, 0.2]
    with pytest.raises(cairn.InvalidError, match=r"net\.weight"):
        ckpt.load(state)


@pytest.mark.parametrize("step, kind", [(99, cairn.NotFoundError), (-1, cairn.InvalidError), ("newest", cairn.InvalidError), (1.5, cairn.InvalidError)])
def test_steps_that_are_not_there(ckpt, step, kind):
    with pytest.raises(kind, match=str(step)):
        ckpt.load(fresh(), step)


def test_a_state_that_is_no_dict(ckpt):
    for bad in ([torch.zeros(1)], torch.nn.Linear(1, 1), None):
        with pytest.raises(cairn.InvalidError, match="a dict is wanted"):
            ckpt.load(bad)
        with pytest.raises(cairn.InvalidError, match="a dict is wanted"):
            ckpt.save(50, bad)


class Thing:
    def __eq__(self, other):
        return isinstance(other, Thing)


def test_a_pickle_needs_both_sides(cluster, job):
    with cairn.Checkpointer(job, raise_errors=True, pickle=True) as c:
        c.save(1, {"thing": Thing(), "w": torch.ones(2)}, wait="committed", timeout=30)
        for load in (lambda **k: c.load({"thing": None, "w": torch.zeros(2)}, 1, **k), lambda **k: cairn.read(job, **k)):
            with pytest.raises(cairn.InvalidError, match="allow_pickle=True"):
                load()
        assert cairn.read(job, allow_pickle=True)["thing"] == Thing()


# ---- saving what cannot be saved ----


def test_a_lambda_is_named_and_the_next_save_works(cluster, job):
    with cairn.Checkpointer(job) as c:
        with pytest.warns(cairn.SaveFailedWarning, match=r"step 1 was not saved, training goes on: state_dict\['opt'\]\['hook'\] is a .*drop it.*pickle=True"):
            assert c.save(1, {"w": torch.ones(1), "opt": {"hook": lambda x: x}}) is None
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # the second of a kind is only counted
            assert c.save(2, {"w": torch.ones(1), "opt": {"hook": lambda x: x}}) is None
        assert c.failures == 2
        assert c.save(3, {"w": torch.ones(1)}, wait="committed", timeout=30).committed
        with pytest.raises(cairn.InvalidError, match="hook"):
            c.save(4, {"opt": {"hook": lambda x: x}}, wait="committed")


class Broken(dict):
    """A state whose own code fails."""

    def items(self):
        raise RuntimeError("no state today")


def test_what_a_state_raises_is_a_failed_save(cluster, job):
    with cairn.Checkpointer(job) as c:
        with pytest.warns(cairn.SaveFailedWarning, match="RuntimeError: no state today"):
            assert c.save(1, Broken()) is None
        assert isinstance(c.last_error.__cause__, RuntimeError)


def test_an_arena_that_is_too_small_says_which_is_needed(cluster, job):
    with cairn.Checkpointer(job, arena=2 << 20, raise_errors=True) as c:
        with pytest.raises(cairn.TooLargeError, match=r"one save needs 9 MiB and the arena has 2: pass arena=12582912"):
            c.save(1, {"w": torch.ones(2 << 20)})
        c.save(2, {"w": torch.ones(10)}, wait="committed", timeout=30)
    with cairn.Checkpointer(job, arena=12582912, raise_errors=True) as c:
        c.save(3, {"w": torch.ones(2 << 20)}, wait="committed", timeout=30)
    with cairn.Checkpointer(job, arena=1 << 40, raise_errors=True) as c, pytest.raises(cairn.TooLargeError, match="arena_max_mib"):
        c.save(4, {"w": torch.ones(10)})


def test_a_step_is_saved_once(cluster, job):
    with cairn.Checkpointer(job, raise_errors=True) as c:
        c.save(5, {"w": torch.ones(1)}, wait="committed", timeout=30)
        with pytest.raises(cairn.ExistsError, match="step 5"):
            c.save(5, {"w": torch.ones(1)})
        for step in (-1, 1.5, True, "3", 2**64 - 1):
            with pytest.raises(cairn.InvalidError, match="a whole number"):
                c.save(step, {"w": torch.ones(1)})
        with pytest.raises(cairn.InvalidError, match="wait is 'soon'"):
            c.save(6, {"w": torch.ones(1)}, wait="soon")


# ---- who is who ----


def test_two_processes_with_one_rank(cluster, job):
    with cairn.Checkpointer(job, 0, 2, start_id="s", raise_errors=True) as one, cairn.Checkpointer(job, 0, 2, start_id="s", raise_errors=True) as two:
        one.save(1, {"w": torch.ones(1)})
        with pytest.raises(cairn.ExistsError, match="rank 0 of job .* is taken"):
            two.save(1, {"w": torch.ones(1)})
        one.close(0)


def test_another_start_that_lives(cluster, job):
    with cairn.Checkpointer(job, raise_errors=True) as one, cairn.Checkpointer(job, raise_errors=True) as two:
        one.save(1, {"w": torch.ones(1)}, wait="committed", timeout=30)
        with pytest.raises(cairn.BusyError, match="alive"):
            two.latest()
        with cairn.Checkpointer(job, raise_errors=True, on_busy="skip") as skipping, pytest.raises(cairn.BusyError, match="alive"):
            skipping.save(2, {"w": torch.ones(1)})  # which is no lack of room
        with cairn.Checkpointer(job, raise_errors=True, take_over=True) as three:
            assert three.latest() == 1
            with pytest.raises(cairn.FencedError):
                one.save(2, {"w": torch.ones(1)})


@pytest.mark.parametrize("arguments, said", [
    (dict(job="a/b"), "job is 'a/b'"), (dict(job=""), "job is ''"), (dict(job=None), "job is None"), (dict(on_busy="maybe"), "on_busy is 'maybe'"),
    (dict(arena=0), "arena is 0"), (dict(arena="big"), "arena is 'big'"), (dict(rank=2, world_size=2), "rank 2 of a world of 2"),
    (dict(rank=0, world_size=2), "needs a start id"), (dict(rank=1), "rank is 1, but no launcher says 0"), (dict(world_size=2), "world_size is 2, but"),
    (dict(rank=0, world_size=2, start_id="a b"), "start_id is 'a b'"), (dict(rank="0", world_size=1), "rank is '0'")])
def test_wrong_arguments(arguments, said):
    with pytest.raises(cairn.InvalidError, match=said):
        cairn.Checkpointer(**{"job": "j", **arguments})


SLURM = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "77"}


@pytest.mark.parametrize("environ, expect", [
    ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "run", "TORCHELASTIC_RESTART_COUNT": "3"}, (1, 2, 1, "torchrun-run-3")),
    (SLURM, (3, 4, 1, "slurm-77-0")), ({**SLURM, "SLURM_RESTART_COUNT": "2"}, (3, 4, 1, "slurm-77-2")),
    ({**SLURM, "RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}, (0, 2, 1, "slurm-77-0")),
    ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "5"}, (0, 1, 0, "slurm-5-0")),
    ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "PMIX_NAMESPACE": "ns@1"}, (1, 2, 1, None)),
    ({"PMI_RANK": "0", "PMI_SIZE": "2", "PMI_JOBID": "k"}, (0, 2, 0, "pmi-k-0"))])
def test_launchers(environ, expect):
    found = launch.find(environ=environ)
    assert (found.rank, found.world_size, found.local_rank) == expect[:3]
    assert launch.is_name(found.start_id) and expect[3] in (None, found.start_id)


@pytest.mark.parametrize("environ, said", [
    ({"RANK": "1"}, "WORLD_SIZE is missing"), ({"WORLD_SIZE": "2"}, "RANK is missing"), ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK is 'x'"),
    ({"RANK": "2", "WORLD_SIZE": "2"}, "rank 2 of a world of 2"), ({"RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}, "needs a start id.*--rdzv-id"),
    ({"RANK": "0", "WORLD_SIZE": "2"}, "needs a start id")])
def test_half_a_launcher(environ, said):
    with pytest.raises(cairn.InvalidError, match=said):
        launch.find(environ=environ)
    assert launch.find(0, 1, environ=environ).rank == 0, "arguments decide"


# ---- no daemon ----


def test_a_daemon_that_is_not_running(tmp_path):
    with cairn.Checkpointer("j", socket=str(tmp_path / "sock")) as c:
        with pytest.raises(cairn.UnavailableError, match=r"sock.*is cairnd running\? .*systemctl start cairnd.*CAIRN_SOCKET"):
            c.latest()
        with pytest.warns(cairn.SaveFailedWarning, match="systemctl start cairnd"):
            assert c.save(1, {"w": torch.ones(1)}) is None
        with pytest.raises(ConnectionError):
            c.load({"w": torch.ones(1)})


def test_a_library_that_is_not_there(tmp_path):
    code = "import cairn\ntry:\n    cairn.Session('j', arena_bytes=1)\nexcept cairn.UnavailableError as e:\n    print(e)"
    env = dict(os.environ, CAIRN_LIBRARY=str(tmp_path / "none.so"), PYTHONPATH=os.pathsep.join(sys.path))
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True)
    assert "load libcairn" in done.stdout and "none.so" in done.stdout and "set CAIRN_LIBRARY" in done.stdout
