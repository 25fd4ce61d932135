# SPDX-License-Identifier: Apache-2.0
"""cairn.Checkpointer on a real daemon: what was saved is what is loaded, whatever the state dict is made of and whoever loads it."""
import gc
import json
import os
import random
import signal
import subprocess
import sys
import threading
import warnings

import numpy
import pytest
import torch
import torch.distributed as dist
from forked import run_forked

import cairn
import checkpointer_ranks
from cairn import _cuda, launch
from cairn import checkpointer as checkpointer_module
from checkpointer_ranks import SHAPES, whole

DTYPES = [torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.uint64, torch.int64, torch.float16,
          torch.bfloat16, torch.float32, torch.float64, torch.complex32, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2,
          torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu, torch.bits8, torch.bits16]


def of_dtype(dtype, shape=(3, 5)):
    size = torch.empty((), dtype=dtype).element_size()
    data = torch.randint(0, 2 if dtype == torch.bool else 256, (*shape[:-1], shape[-1] * size), dtype=torch.uint8)
    return data.view(dtype)


def bits(t):
    """What is compared: not-a-numbers too."""
    return t.dtype, tuple(t.shape), t.contiguous().flatten().view(torch.uint8).tolist() if t.numel() else []


def a_state():
    base = torch.randn(6, 8)
    return {
        "dtypes": {str(d): of_dtype(d) for d in DTYPES},
        "views": {"transposed": base.t(), "every second": base[::2, 1::3], "permuted": torch.randn(2, 3, 4).permute(2, 0, 1), "expanded": torch.randn(3, 1).expand(3, 4),
                  "conjugate": torch.randn(3, dtype=torch.complex64).conj(), "negative": torch.randn(3, dtype=torch.complex64).conj().imag},
        "shapes": [torch.tensor(3.5), torch.empty(0), torch.empty(4, 0, 2), torch.randn(1, 1, 1)],
        "arrays": {"f": numpy.asfortranarray(numpy.arange(6.0).reshape(2, 3)), "c16": numpy.arange(3) * 2j, "big": numpy.arange(3, dtype=">i4"), "u": numpy.array(["a", "ü"]),
                   "0d": numpy.array(7)},
        "rng": {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": numpy.random.get_state()},
        "values": {"step": 12, "lr": 1e-4, "nan": float("nan"), "name": "x", "none": None, "betas": (0.9, 0.999), "set": {1, 2}, "bytes": b"\0\1", "big": 2**100},
        0: torch.ones(1),
    }


def zeroed(state):
    """The same containers with other contents, of the same kinds."""
    if isinstance(state, torch.Tensor):
        return torch.zeros(state.shape, dtype=torch.uint8).to(state.dtype) if state.dtype not in (torch.bits8, torch.bits16) else of_dtype(state.dtype)
    if isinstance(state, numpy.ndarray):
        return numpy.zeros_like(state)
    if isinstance(state, dict):
        return {k: zeroed(v) for k, v in state.items()}
    if type(state) in (list, tuple):
        return type(state)(zeroed(v) for v in state)
    return None


def assert_same(a, b, path="state"):
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert bits(a) == bits(b), path
    elif isinstance(a, numpy.ndarray):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), path
    elif isinstance(a, dict):
        assert list(a) == list(b), path
        for k in a:
            assert_same(a[k], b[k], f"{path}.{k}")
    elif type(a) in (list, tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b)):
            assert_same(x, y, f"{path}.{i}")
    else:
        assert a == b or a != a and b != b, path


def plain(tensor):
    return tensor.resolve_conj().resolve_neg()


def checkpointer(job, **kwargs):
    return cairn.Checkpointer(job, raise_errors=True, **kwargs)


def test_everything_comes_back(cluster, job):
    state = a_state()
    expect = {**state, "views": {k: plain(v) for k, v in state["views"].items()}}
    with checkpointer(job) as ckpt:
        handle = ckpt.save(3, state, wait="committed", timeout=30)
        assert handle.committed and handle.step == 3
    back = zeroed(state)
    tensors = {id(t): t for t in [*back["dtypes"].values(), *back["shapes"], back["views"]["transposed"]]}
    with checkpointer(job) as ckpt:
        assert ckpt.load(back) == 3
        assert_same(back, expect)
        assert all(id(t) in tensors for t in [*back["dtypes"].values(), *back["shapes"]]), "tensors are filled in place"
        assert_same(ckpt.load_tree(), expect)
    assert_same(cairn.read(job), expect)
    assert cairn.read(job, 3)["values"]["step"] == 12 and cairn.read("nobody-" + job) is None


def test_loads_into_views(cluster, job):
    """Targets that are not dense."""
    state = {"a": torch.randn(6, 8), "b": torch.randn(4, dtype=torch.complex64)}
    with checkpointer(job) as ckpt:
        ckpt.save(1, state, wait="committed")
        memory = torch.zeros(20, 20)
        lazy = torch.zeros(4, dtype=torch.complex64).conj()
        ckpt.load({"a": memory[1:17:2, 3:9].t(), "b": lazy})
        assert torch.equal(memory[1:17:2, 3:9].t(), state["a"]) and memory.count_nonzero() == 48
        assert torch.equal(lazy.resolve_conj(), state["b"])
        with pytest.raises(cairn.InvalidError, match=r"state_dict\['a'\] is expanded"):
            ckpt.load({"a": torch.zeros(1, 8).expand(6, 8), "b": lazy})


def trained(seed):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Embedding(11, 4), torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 11, bias=False))
    model[3].weight = model[0].weight
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2)


def train(model, optimizer, scheduler, steps):
    losses = []
    for i in range(steps):
        loss = model(torch.arange(i, i + 8) % 11).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        losses.append(loss.item())
    return losses


def test_a_training_goes_on_bit_for_bit(cluster, job):
    """Objects at the top stand for their state; an optimizer that has not stepped yet gets its state."""
    objects = dict(zip(("model", "optimizer", "scheduler"), trained(1)))
    train(*objects.values(), 3)
    with checkpointer(job) as ckpt:
        assert ckpt.load({**objects, "epoch": 1}) is None
        handle = ckpt.save(3, {**objects, "epoch": 7})
        handle.wait(timeout=30)
        names = {s.name for s in ckpt._session.restore(3).slices()}
    assert "model.0.weight" in names and "model.3.weight" not in names, "tied weights are stored once"
    expect = train(*objects.values(), 4)
    again = {**dict(zip(("model", "optimizer", "scheduler"), trained(2))), "epoch": 0}
    with checkpointer(job) as ckpt:
        assert ckpt.load(again) == 3
    assert again["epoch"] == 7 and train(*list(again.values())[:3], 4) == expect


def test_later_saves_take_what_the_state_is_then(cluster, job):
    """The fast path: other addresses, other values, tensors that were replaced."""
    state = {"w": torch.zeros(1000), "n": numpy.zeros(3), "log": []}
    with checkpointer(job) as ckpt:
        for step in range(1, 6):
            state = {"w": torch.full((1000,), float(step)), "n": numpy.full(3, float(step)), "log": [*state["log"], step]}
            layout = ckpt._layout
            ckpt.save(step, state)
            state["w"].zero_()
        assert ckpt._layout is layout, "one layout served all"
        ckpt.save(6, {**state, "more": torch.ones(2)}, wait="committed")
        assert cairn.read(job, 6)["more"].tolist() == [1, 1]
        for step in (1, 5):
            back = cairn.read(job, step)
            assert back["w"].unique().tolist() == [step] and back["n"].tolist() == [step] * 3 and back["log"] == list(range(1, step + 1))


def test_tensors_that_the_processor_cannot_read(cluster, job, monkeypatch):
    """Staged: torch copies them to their places in the arena. Here all tensors are said to be so."""
    with checkpointer(job) as ckpt:
        for step in (1, 2):
            state = {"a": torch.full((3, 5), float(step)).t(), "c": torch.full((2,), 1j * step, dtype=torch.complex128), "n": numpy.full(2, step), "e": torch.empty(0)}
            with monkeypatch.context() as patched:
                patched.setattr(_cuda, "device_of", lambda tensor: None)
                ckpt.save(step, state, wait="committed")
            assert len(ckpt._layout.device_rows) == 2
            assert_same(cairn.read(job, step), state)


def test_the_arena_grows_with_the_state(cluster, job):
    with checkpointer(job) as ckpt:
        assert ckpt.latest() is None
        small = ckpt._arena
        first = ckpt.save(1, {"w": torch.ones(1000)})
        ckpt.save(2, {"w": torch.ones(3 << 20)})
        assert ckpt._arena > small and first.committed
        ckpt.save(3, {"w": torch.ones(6 << 20)}, wait="committed")
        assert cairn.read(job)["w"].sum() == 6 << 20
        ckpt._resumed = (2,)  # as if the step to resume from had moved while no session was open
        with pytest.raises(cairn.StalePinError, match="was 2 and is None"):
            ckpt.save(4, {"w": torch.ones(12 << 20)})
        ckpt.save(5, {"w": torch.ones(12 << 20)})


def test_latest_is_fixed_for_a_start(cluster, job):
    with checkpointer(job) as ckpt:
        ckpt.save(1, {"w": torch.ones(3)}, wait="committed")
    with checkpointer(job) as ckpt:
        assert ckpt.latest() == 1
        ckpt.save(2, {"w": torch.ones(3 << 20)}, wait="committed")  # with a larger arena, so another session
        assert ckpt.latest() == 1
    with checkpointer(job) as ckpt:
        assert ckpt.latest() == 2


def busy(job, on_busy, **kwargs):
    """Two saves at once in an arena for one."""
    state = {"w": torch.ones(12 << 20)}  # 48 MiB: not on the disk by the time the next line runs
    with cairn.Checkpointer(job, arena=50 << 20, on_busy=on_busy, **kwargs) as ckpt:
        assert ckpt.save(1, state)
        return ckpt, ckpt.save(2, state)


def test_on_busy(cluster, job):
    ckpt, second = busy(job, "skip")
    assert second is None and (ckpt.skipped, ckpt.failures) == (1, 0)
    with pytest.warns(cairn.SaveFailedWarning, match="free while earlier saves drain"):
        ckpt, second = busy(job + "f", "fail")
    assert second is None and ckpt.failures == 1 and isinstance(ckpt.last_error, cairn.BusyError)
    ckpt, second = busy(job + "w", "wait")
    assert second.step == 2 and ckpt.failures == 0 and cairn.read(job + "w")["w"].sum() == 12 << 20


def test_ranks_save_and_any_world_loads(cluster, job):
    """DTensors on a 2x2 mesh with every kind of placement, replicated and own tensors; loaded by 4, 3 and 2 ranks and by one without torch.distributed."""
    stored = run_forked(4, checkpointer_ranks.save, {"job": job}, timeout=90)
    once = sum(whole(n).nbytes for n in SHAPES) + 21000 * 4 + 3 * 4 + 4 * 4
    documents = sum(stored) - once
    assert 0 < documents <= 4 * 8192 and documents % 4096 == 0, "what is replicated is stored once"
    for world in (4, 3, 2):
        results = run_forked(world, checkpointer_ranks.load, {"job": job}, timeout=90)
        assert [r["step"] for r in results] == [2] * world and not any(r["wrong"] for r in results), results
        assert [r["own"] for r in results] == list(range(world)), "each rank's own comes back to it"
    back = cairn.read(job)
    assert all(torch.equal(back["model"][n], whole(n)) for n in SHAPES)
    assert torch.equal(back["same"], torch.arange(21000.0).view(300, 70)) and back["own"]["rank"].item() == 0
    assert cairn.read(job, rank=3)["own"]["rank"].item() == 3
    with checkpointer(job) as ckpt:
        state = {"model": {"even": torch.zeros(SHAPES["even"])}}
        assert ckpt.load(state, strict=False) == 2 and torch.equal(state["model"]["even"], whole("even"))


def test_what_ranks_hold_in_common(cluster, job):
    """Each stores it, and one that has another bit is told of; what is its own, or stored in shares, is not compared."""
    rules = {"common": lambda name: name != "own", "replicated": lambda name: name == "shared"}
    ranks = [cairn.Checkpointer(job, r, 2, start_id="one", raise_errors=True, **rules) for r in range(2)]
    for step in (1, 2):
        wrong = [torch.zeros(1000), torch.zeros(1000)]
        wrong[1][7] = step - 1
        states = [{"w": wrong[r], "own": torch.full((9,), float(r)), "shared": torch.ones(300, 70)} for r in range(2)]
        for handle in [ckpt.save(step, state) for ckpt, state in zip(ranks, states)]:
            handle.wait("committed", 30)
        shown = json.loads(cluster.cairn("show", job, str(step), "--json").stdout)
        common = {t["name"]: [s["common"] for s in t["slices"]] for t in shown["tensors"] if not t["name"].startswith(".")}
        assert common == {"w": [True, True], "own": [False, False], "shared": [False, False]}
        assert (shown["common_mismatch"] or {}).get("tensors") == (None if step == 1 else ["w"]), shown["common_mismatch"]
    for ckpt in ranks:
        ckpt.close()


class Data(torch.utils.data.Dataset):
    """Holds a Checkpointer, as a careless program's does."""

    def __init__(self, ckpt=None):
        self.ckpt = ckpt

    def __len__(self):
        return 8

    def __getitem__(self, i):
        if self.ckpt:
            with pytest.raises(cairn.ForkedError, match="belongs to process"):
                self.ckpt.save(99, {"w": torch.ones(1)})
            self.ckpt = None  # the last reference in this process
            gc.collect()
        return i


def test_data_loader_workers_do_not_disturb(cluster, job):
    state = {"w": torch.ones(1000)}
    with checkpointer(job) as ckpt:
        handle = ckpt.save(1, state)
        for context, data in (("fork", Data(ckpt)), ("spawn", Data())):
            loader = torch.utils.data.DataLoader(data, num_workers=2 if context == "fork" else 1, multiprocessing_context=context)
            assert sum(int(i) for i in loader) == 28
        handle.wait(timeout=30)
        ckpt.save(2, state, wait="committed", timeout=30)


def interrupt_soon():
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    return timer


def test_ctrl_c_ends_a_wait(cluster, job):
    with cairn.Checkpointer(job, rank=0, world_size=2, start_id="alone") as ckpt:
        handle = ckpt.save(1, {"w": torch.ones(3)})
        interrupt_soon()
        with pytest.raises(KeyboardInterrupt):
            handle.wait("committed", 60)  # the other rank never comes
        ckpt.close(0)


def test_ctrl_c_loses_no_save(cluster, job, monkeypatch):
    """Between two looks at saves that are on their way, and at the end: each can still be waited for, and is counted if it fails."""
    wait = cairn.checkpointer.SaveHandle.wait

    def interrupted(handle, *args):
        monkeypatch.setattr(cairn.checkpointer.SaveHandle, "wait", wait)
        raise KeyboardInterrupt

    ckpt = cairn.Checkpointer(job, rank=0, world_size=2, start_id="alone", arena=32 << 20)
    for step in (1, 2):
        ckpt.save(step, {"w": torch.ones(3)})
    for act in (lambda: ckpt.save(3, {"w": torch.ones(3)}), ckpt.close):
        monkeypatch.setattr(cairn.checkpointer.SaveHandle, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            act()
        assert [handle.step for handle in ckpt._under_way] == ([] if act == ckpt.close else [1, 2, 3])
    assert ckpt._session is None


def test_ctrl_c_ends_a_load(cluster, job):
    with checkpointer(job) as ckpt:
        ckpt.save(1, {"w": torch.ones(1 << 20)}, wait="committed")
    with cairn.Session(job, observer=True) as session:
        restore, target = session.restore(1), torch.zeros(1 << 20)
        restore.add("w", "F32", (1 << 20,), target.data_ptr(), keep=target)
        cluster.all.node.freeze()
        try:
            interrupt_soon()
            with pytest.raises(KeyboardInterrupt):
                restore.run(30)
        finally:
            cluster.all.node.thaw()
        restore.run(30)  # which no reader of before is in the way of
        assert target.sum() == 1 << 20


def test_a_daemon_that_dies_does_not_stop_training(cluster, job):
    state = {"w": torch.ones(1000)}
    with cairn.Checkpointer(job, timeout=1.0) as ckpt:
        ckpt.save(1, state, wait="committed", timeout=30)
        cluster.kill()
        with pytest.warns(cairn.SaveFailedWarning, match=r"step 2 was not saved, training goes on.*cairnd") as warned:
            assert ckpt.save(2, state) is None and ckpt.save(3, state) is None
        assert len(warned) == 1 and ckpt.failures == 2 and isinstance(ckpt.last_error, ConnectionError)
        with pytest.raises(cairn.UnavailableError):
            ckpt.save(4, state, wait="committed", timeout=1)
        cluster.restart()
        assert ckpt.save(5, state, wait="committed", timeout=30).committed
        handle = ckpt.save(6, state)
        cluster.kill()  # in the middle, or just before: the snapshot is in the arena
        cluster.restart()
        handle.wait(timeout=60)
    assert cairn.read(job, 6)["w"].sum() == 1000


def test_a_save_that_fails_later_is_counted(cluster, job):
    """A rank that goes on alone: its step is given up when the next one of the other begins."""
    ranks = [cairn.Checkpointer(job, rank=r, world_size=2, start_id="both") for r in range(2)]
    state = {"w": torch.ones(3)}
    first = ranks[0].save(1, state)
    ranks[1].save(2, state)
    with pytest.raises(cairn.AbortedError):
        first.wait(timeout=30)
    with pytest.warns(cairn.SaveFailedWarning, match="step 1 was not saved"):
        ranks[0].save(2, state, wait="committed", timeout=30)
    assert ranks[0].failures == 1 and ranks[1].failures == 0
    for r in ranks:
        r.close()


def test_nothing_is_left_behind_by_a_process(cluster, job):
    """Interpreter shutdown with a Checkpointer that nobody closed."""
    code = (f"import cairn, array\nc = cairn.Checkpointer({job!r}, raise_errors=True)\nh = c.save(1, {{'a': 1}})\nimport sys\n"
            "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n")
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    with checkpointer(job) as ckpt:
        assert ckpt.load_tree() == {"a": 1}, "what was sealed is committed after its process is gone"


def test_latest_does_not_lose_what_the_killed_process_left(cluster, job):
    """Who asks latest() first, before any state is known, still reads from the memory of the process before."""
    code = (f"import cairn, numpy, os\nc = cairn.Checkpointer({job!r}, raise_errors=True)\n"
            "c.save(1, {'a': numpy.arange(1 << 20)}, wait='committed', timeout=30)\nos._exit(9)\n")
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    assert subprocess.run([sys.executable, "-c", code], env=env, timeout=60).returncode == 9
    with checkpointer(job) as ckpt, cairn.Session(None, observer=True) as session:
        assert ckpt.latest() == 1
        before = session.query("status")["restore"]
        state = {"a": numpy.zeros(1 << 20, int)}
        assert ckpt.load(state) == 1 and state["a"][-1] == (1 << 20) - 1
        after = session.query("status")["restore"]
        assert after["read_bytes"] == before["read_bytes"], "it was read from storage"
        assert after["hot_bytes"] + after["in_place_bytes"] >= before["hot_bytes"] + before["in_place_bytes"] + (8 << 20)


def test_no_warning_without_a_reason(cluster, job):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with cairn.Checkpointer(job) as ckpt:
            for step in range(5):
                ckpt.save(step, {"w": torch.ones(10)})
    assert (ckpt.failures, ckpt.skipped, ckpt.last_error) == (0, 0, None)


def test_ranks_agree_on_a_start_through_torch(tmp_path):
    """torchrun without --rdzv-id names no run: the ranks take what the first of them puts into their store."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        ids = {launch.find(rank, 2, environ={"TORCHELASTIC_RUN_ID": "none"}).start_id for rank in (0, 1, 0)}
    finally:
        dist.destroy_process_group()
    assert len(ids) == 1 and ids.pop().startswith("start-")
    with pytest.raises(cairn.InvalidError, match="start id"):
        launch.find(0, 2, environ={})


@pytest.mark.parametrize("by", ["a signal handler of the thread that waits", "another thread"])
def test_close_while_a_save_is_waited_for(cluster, job, by):
    """The wait is for a rank that never comes; close() ends it within its own timeout and a piece of the wait."""
    ckpt = cairn.Checkpointer(job, rank=0, world_size=2, start_id="half", raise_errors=True)
    handle = ckpt.save(1, {"x": torch.ones(3)})
    ended = []

    def wait():
        with pytest.raises(cairn.TimeoutError, match="when its session was closed"):
            handle.wait("committed", 60)
        ended.append(True)

    if by == "another thread":
        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        threading.Event().wait(0.3)
        ckpt.close(0.1)
        waiting.join(30)
    else:
        before = signal.signal(signal.SIGUSR1, lambda *_: ckpt.close(0.1))
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1))
        timer.start()
        try:
            wait()
        finally:
            timer.join()
            signal.signal(signal.SIGUSR1, before)
    assert ended == [True]


def test_ranks_with_other_shapes_under_one_name(cluster, job):
    """As data loaders' states have: each reads its own, and so does who has no rank."""
    ranks = [cairn.Checkpointer(job, rank=r, world_size=2, start_id="shapes", raise_errors=True) for r in (0, 1)]
    states = [{"x": torch.full((3 + 4000 * r,), float(r)), "d": torch.full((5,), r + 0.5, dtype=(torch.float32, torch.float64)[r])} for r in (0, 1)]
    for handle in [ckpt.save(1, state) for ckpt, state in zip(ranks, states)]:
        handle.wait()
    for ckpt, state in zip(ranks, states):
        for found in (ckpt.load_tree(1), cairn.read(job, rank=ckpt.rank)):
            assert {k: bits(t) for k, t in found.items()} == {k: bits(t) for k, t in state.items()}
        ckpt.close()


def test_a_signal_handler_saves_in_the_middle_of_a_save(cluster, job, monkeypatch):
    """Both save what they were given; the handler cannot close the session under the other."""
    refresh, said = checkpointer_module.Layout.refresh, []

    def interrupted(layout, state):
        fits = refresh(layout, state)
        if state["step"] == 3:
            os.kill(os.getpid(), signal.SIGUSR1)
        return fits

    def handler(*_):
        ckpt.save(2, {"w": torch.full((1 << 16,), 2.0), "step": 2})  # steps are saved in order
        with pytest.raises(cairn.InvalidError, match="set a flag") as e:
            ckpt.close()
        said.append(str(e.value))

    monkeypatch.setattr(checkpointer_module.Layout, "refresh", interrupted)
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with checkpointer(job) as ckpt:
            for step in (1, 3, 4):
                ckpt.save(step, {"w": torch.full((1 << 16,), float(step)), "step": step}, wait="committed")
            for step in (1, 2, 3, 4):
                found = ckpt.load_tree(step)
                assert found["step"] == step and found["w"].eq(step).all(), step
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(said) == 1


def test_tied_in_the_state_but_not_in_the_checkpoint(cluster, job, caplog):
    """Equal contents stay tied; of different ones none is lost."""
    def tied():
        t, a = torch.zeros(4, 4), numpy.zeros(3)
        return {"x": t, "same": t, "other": (t, 1), "a": a, "b": [a]}

    saved = {"x": torch.ones(4, 4), "same": torch.ones(4, 4), "other": (torch.full((4, 4), float("nan")), 2), "a": numpy.ones(3), "b": [numpy.arange(3.0)]}
    with checkpointer(job) as ckpt:
        ckpt.save(1, saved, wait="committed")
        state = tied()
        x = state["x"]
        ckpt.load(state, 1)
    assert state["x"] is x and state["same"] is x and x.eq(1).all()
    assert bits(state["other"][0]) == bits(saved["other"][0]) and state["other"][1] == 2
    assert state["a"].tolist() == [1, 1, 1] and state["b"][0].tolist() == [0, 1, 2]
    assert [r.getMessage().split(": ")[1].split(" are")[0] for r in caplog.records] == ["state_dict['x'] and state_dict['other'][0]", "state_dict['a'] and state_dict['b'][0]"]


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["a float", "a tensor"])
def test_a_scheduler_of_schedulers(cluster, job, lr):
    """A new SequentialLR and its first scheduler share one list of learning rates; one that has run does not."""
    def made():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=lr)
        first, then = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=3), torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5])
        return torch.optim.lr_scheduler.SequentialLR(optimizer, [first, then], [3])

    run, new = made(), made()
    for _ in range(5):
        run.optimizer.step()
        run.step()
    with checkpointer(job) as ckpt:
        ckpt.save(1, {"scheduler": run}, wait="committed")
        ckpt.load({"scheduler": new}, 1)
    assert str(new.state_dict()) == str(run.state_dict())


def test_containers_in_two_places(cluster, job):
    """Those that the checkpoint has alike stay one."""
    shared, none = [1, 2], {}
    state = {"a": shared, "b": shared, "c": (shared,), "n": none, "m": none}
    saved = {"a": [3], "b": [3], "c": ([4, 5],), "n": {"x": 1}, "m": {"y": torch.ones(2)}}
    with checkpointer(job) as ckpt:
        ckpt.save(1, saved, wait="committed")
        ckpt.load(state, 1)
    assert state["a"] is shared and state["b"] is shared and (shared, state["c"]) == ([3], ([4, 5],))
    assert state["n"] == {"x": 1} and list(state["m"]) == ["y"]


def test_two_runs_with_one_start_id_are_warned_of(cluster, job):
    with checkpointer(job, start_id="slurm-1-0") as ckpt:
        assert ckpt.latest() is None
        ckpt.save(1, {"w": torch.ones(3)}, wait="committed")
        assert ckpt.latest() is None
    with checkpointer(job, start_id="slurm-1-0") as ckpt:
        with pytest.warns(RuntimeWarning, match="newest checkpoint is step 1, but this start resumes from no checkpoint.*slurm-1-0"):
            assert ckpt.load({"w": torch.zeros(3)}) is None
    with warnings.catch_warnings(), checkpointer(job, start_id="slurm-2-0") as ckpt:
        warnings.simplefilter("error")
        assert ckpt.load({"w": torch.zeros(3)}) == 1


@pytest.mark.parametrize("size, stride, fits", [((2, 3), (1, 1), False), ((2, 3), (0, 1), False), ((3, 2), (2, 3), True), ((2, 3), (1, 2), True), ((1, 3), (0, 2), True), ((0, 2), (0, 0), True)])
def test_loads_only_into_elements_apart(cluster, job, size, stride, fits):
    saved, target = torch.randn(size), torch.zeros(12).as_strided(size, stride)
    with checkpointer(job) as ckpt:
        ckpt.save(1, {"w": saved}, wait="committed")
        if not fits:
            with pytest.raises(cairn.InvalidError, match="several of its elements are one place"):
                ckpt.load({"w": target}, 1)
        else:
            ckpt.load({"w": target}, 1)
            assert bits(target) == bits(saved)
