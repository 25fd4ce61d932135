# SPDX-License-Identifier: Apache-2.0
"""Tensors on a GPU, with libcairn, its CUDA plugin and a double of the CUDA runtime (gpu_double.py)."""
import ctypes
import gc
import os
import subprocess
import sys
import threading
import warnings
import weakref

import pytest
import torch
import torch.distributed.checkpoint as dcp
from gpu_double import SHIM, gpu  # noqa: F401

import cairn
from cairn import _cuda, _lib, _torch

MIB = 1 << 20
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is")


def filled(value, mib=1):
    return torch.full((mib * MIB // 4,), float(value))


def checkpointer(job, **kwargs):
    return cairn.Checkpointer(job, raise_errors=True, **kwargs)


class Step(torch.optim.Optimizer):
    """Its step is work in the GPU's stream: every parameter becomes one more."""

    def __init__(self, gpu, params):
        self.gpu = gpu
        super().__init__(params, {"lr": 1.0})

    @torch.no_grad()
    def step(self):
        params = [p for group in self.param_groups for p in group["params"]]
        return self.gpu.kernel(lambda: [p.data.add_(1) for p in params])


class Net(torch.nn.Module):
    def __init__(self, gpu):
        super().__init__()
        self.weight = torch.nn.Parameter(gpu.tensor(filled(1, 2)))
        self.register_buffer("mean", gpu.tensor(torch.full((1000,), 1.0)))


def net(gpu):
    model = Net(gpu)
    return model, Step(gpu, [model.weight])


def read(job, step):
    return cairn.read(job, step)


def only(values, value):
    return bool((values == value).all())


def no_warning():
    caught = warnings.catch_warnings()
    caught.__enter__()
    warnings.simplefilter("error")
    return caught


def test_a_save_returns_before_anything_is_copied(cluster, job, gpu):  # noqa: F811
    """It saves what the stream before it has made, and what the program puts into the stream after it changes nothing, without a word of the
    program's."""
    weight = gpu.tensor(filled(1, 2))
    with checkpointer(job) as ckpt:
        ckpt.save(1, {"w": weight}, wait="committed")
        gpu.hold()
        gpu.slow()
        gpu.kernel(lambda: weight.fill_(3))
        handle = ckpt.save(2, {"w": weight})
        assert not handle.is_reached("snapshot")
        ran = gpu.kernel(lambda: weight.fill_(2))
        gpu.release()
        handle.wait("committed", 10)
        assert ran.wait(10) and only(weight, 2)
        assert handle.info() == {} or handle.info()["device_bytes"] == 2 * MIB
    assert only(read(job, 2)["w"], 3)


def test_what_is_saved(cluster, job, gpu):  # noqa: F811
    """Beside tensors of the host: every dtype, strides, views of one memory, nothing."""
    base = gpu.tensor(torch.arange(240.0).view(12, 20))
    state = {
        "dense": base, "transposed": base.t(), "part": base[2:9:3, 5:], "half": gpu.tensor(torch.randn(33, 7).bfloat16()),
        "complex": gpu.tensor(torch.randn(5, dtype=torch.complex128)), "conjugated": gpu.tensor(torch.randn(6, dtype=torch.complex64)).conj(),
        "scalar": gpu.tensor(torch.tensor(3)), "empty": gpu.tensor(torch.empty(0, 3)), "host": torch.randn(100), "step": 4,
    }
    expect = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in state.items()}
    with checkpointer(job) as ckpt:
        for step in (1, 2):
            handle = ckpt.save(step, state, wait="snapshot")
            assert handle.info()["device_bytes"] > 0
            handle.wait("committed")
            back = read(job, step)
            for name, value in expect.items():
                assert torch.equal(back[name], value.resolve_conj()) if isinstance(value, torch.Tensor) else back[name] == value, name


def test_overlap_with_an_attached_optimizer(cluster, job, gpu):  # noqa: F811
    """Forward and backward run before slow copies; buffers, which they change, are saved as they were; the optimizer's step is behind
    the copies."""
    model, optimizer = net(gpu)
    state = {"model": model, "optimizer": optimizer, "step": 1}
    caught = no_warning()
    with checkpointer(job) as ckpt:
        ckpt.attach(optimizer)
        for step in (1, 2):
            gpu.slow()
            copied, seen = gpu.copied(), []
            handle = ckpt.save(step, state)
            forward = gpu.kernel(lambda: (model.mean.fill_(-1), seen.append(gpu.copied() - copied)))
            optimizer.step()
            gpu.kernel(lambda: model.mean.fill_(step + 1))
            assert forward.wait(10) and seen[0] < 2 * MIB, "forward waits for the copies"
            gpu.slow(False)
            handle.wait("snapshot", 10)
            assert handle.info()["staged_bytes"] >= 4000
            handle.wait("committed", 10)
            back = read(job, step)["model"]
            assert only(back["weight"], step) and only(back["mean"], step)
            gpu.drain()
    caught.__exit__(None, None, None)


def test_a_step_is_behind_slow_copies(cluster, job, gpu):  # noqa: F811
    """The fence is in the stream, not in the program's order: what it holds back is what would change the tensors."""
    model, optimizer = net(gpu)
    gpu.slow()
    with checkpointer(job) as ckpt:
        ckpt.attach(optimizer)
        for step in (1, 2):
            handle = ckpt.save(step, {"model": model, "optimizer": optimizer})
            optimizer.step()
            handle.wait("committed", 10)
            gpu.drain()
            assert only(read(job, step)["model"]["weight"], step)


def test_memory_is_held_until_it_is_copied(cluster, job, gpu):  # noqa: F811
    """Tensors that the program drops, or gives other memory, while they are being copied; later calls let go of it."""
    with checkpointer(job, overlap=True) as ckpt:
        state = {"w": gpu.tensor(filled(1)), "parameter": torch.nn.Parameter(gpu.tensor(filled(2)))}
        ckpt.save(1, state, wait="committed")
        assert gpu.let_go == []
        gpu.hold()
        handle = ckpt.save(2, state)
        state["parameter"].data = filled(0)
        parameter = state["parameter"]
        del state
        gc.collect()
        gpu.release(gpu.streams[0])
        assert gpu.let_go == []
        gpu.release()
        handle.wait("snapshot", 10)
        gc.collect()
        assert len(gpu.let_go) == 2
        handle.wait("committed", 10)
        assert parameter is not None
    back = read(job, 2)
    assert only(back["w"], 1) and only(back["parameter"], 2)


def test_memory_is_let_go_without_the_handle(cluster, job, gpu):  # noqa: F811
    with checkpointer(job) as ckpt:
        ckpt.save(1, {"w": gpu.tensor(filled(1))}).wait("committed", 10)
        ckpt.fence()
        gc.collect()
        assert len(gpu.let_go) == 1
        ckpt.save(2, {"w": gpu.tensor(filled(2))})
        gpu.drain()
        while ckpt._under_way[0]._memory is not None:
            ckpt.fence()
        gc.collect()
        assert len(gpu.let_go) == 2
        handle = ckpt.save(3, {"w": gpu.tensor(filled(3))})
    gc.collect()
    assert len(gpu.let_go) == 3 and handle.step == 3


def test_a_checkpointer_that_is_dropped(cluster, job, gpu):  # noqa: F811
    """Without close(), while devices copy: the memory is held, and handles go on."""
    ckpt = checkpointer(job, overlap=True)
    ckpt.save(1, {"w": gpu.tensor(filled(1))}, wait="committed")
    gpu.hold()
    handles = [ckpt.save(step, {"w": gpu.tensor(filled(step))}) for step in (2, 3)]
    del handles[0], ckpt
    gc.collect()
    gpu.release(gpu.streams[0])
    assert len(gpu.let_go) == 1
    gpu.release()
    handles[0].wait("committed", 20)
    del handles
    gc.collect()
    assert len(gpu.let_go) == 3
    assert all(only(read(job, step)["w"], step) for step in (2, 3))


ENDS = """
import ctypes, sys, torch, cairn
from cairn import _cuda
from gpu_double import GARBAGE, Gpu
gpu = Gpu()
gpu._back = lambda address, size: ctypes.memset(address, GARBAGE, size)
for name in ("device_of", "stream_of", "is_capturing", "synchronize"):
    setattr(_cuda, name, getattr(gpu, name))
weight = torch.nn.Parameter(gpu.tensor(torch.zeros(1 << 18)))
optimizer = torch.optim.SGD([weight], lr=1.0)
ckpt = cairn.Checkpointer(sys.argv[1], raise_errors=True)
ckpt.attach(optimizer)
ckpt.save(1, {"w": weight.data}, wait="committed")
gpu.slow()
for step in (2, 3):
    weight.data = gpu.tensor(torch.full((1 << 18,), float(step)))
    assert not ckpt.save(step, {"w": weight.data}).is_reached("snapshot")
"""


def test_a_program_ends_while_devices_copy(cluster, job, gpu):  # noqa: F811
    """Nobody has closed anything: the interpreter's end waits for the copies, and lets go of memory behind them."""
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    done = subprocess.run([sys.executable, "-c", ENDS, job], env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    with cairn.Checkpointer(job) as ckpt:  # of the next start: it comes behind what was sealed
        ckpt.save(4, {}, wait="committed", timeout=20)
    assert all(only(read(job, step)["w"], step) for step in (2, 3))


def test_ctrl_c_behind_the_copy(cluster, job, gpu, monkeypatch):  # noqa: F811
    """It comes when libcairn has put the copies into streams, and nobody has the handle yet: memory is held and the fence stands."""
    call = _lib.call

    def interrupted(name, *args):
        call(name, *args)
        if name == "cairn_save_all":
            raise KeyboardInterrupt

    weight = gpu.tensor(filled(1))
    with checkpointer(job) as ckpt:
        ckpt.save(1, {"w": weight, "v": weight}, wait="committed")
        gpu.hold()
        monkeypatch.setattr(_lib, "call", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ckpt.save(2, {"w": weight, "v": gpu.tensor(filled(2))})
        monkeypatch.setattr(_lib, "call", call)
        gc.collect()
        ran = gpu.kernel(lambda: weight.fill_(3))
        gpu.release(gpu.streams[0])
        assert gpu.let_go == [] and not ran.wait(0.1)
        gpu.release()
        assert ran.wait(10)
    gc.collect()
    assert len(gpu.let_go) == 1
    back = read(job, 2)
    assert only(back["w"], 1) and only(back["v"], 2)


def test_volatile(cluster, job, gpu):  # noqa: F811
    """What is asked for by name; of a bare state dict what no attached optimizer changes; nothing where the fence is put at once."""
    model, optimizer = net(gpu)
    staged = []
    for number, (options, state) in enumerate([
        ({"volatile": lambda name: name == "model.weight"}, {"model": model}),
        ({"volatile": "all"}, {"model": model}),
        ({"volatile": "none"}, {"model": model}),
        ({}, {"model": dict(model.state_dict())}),
        ({"overlap": False}, {"model": model}),
    ]):
        with checkpointer(f"{job}-{number}", **options) as ckpt:
            ckpt.attach(optimizer)
            handle = ckpt.save(1, state, wait="snapshot")
            layout = ckpt._layout
            staged.append(layout.volatile_bytes)
            handle.wait("committed", 10)
    assert staged == [2 * MIB, 2 * MIB + 4000, 0, 4000, 0]


def test_volatile_tensors_that_do_not_fit(cluster, job, gpu):  # noqa: F811
    """One warning, and work on the GPU waits for the copies."""
    model, optimizer = net(gpu)
    with checkpointer(job, volatile="all", device_staging=64 << 10) as ckpt:
        ckpt.attach(optimizer)
        with pytest.warns(RuntimeWarning, match="waits for the copies.*device_staging is 0 MiB") as told:
            ckpt.prepare({"model": model})
            for step in (1, 2):
                gpu.slow()
                gpu.hold()
                handle = ckpt.save(step, {"model": model})
                gpu.kernel(lambda: model.weight.data.fill_(step + 1))
                gpu.release()
                handle.wait("committed", 10)
                assert only(read(job, step)["model"]["weight"], step)
                gpu.drain()
        assert len(told) == 1


class Wrapper:
    """As Accelerate's: it runs no hooks of its own."""

    def __init__(self, optimizer):
        self.optimizer, self.step, self.param_groups = optimizer, optimizer.step, optimizer.param_groups
        self.register_step_pre_hook = None


def test_attach_and_detach(cluster, job, gpu):  # noqa: F811
    """A wrapper's optimizer runs the hooks; after detach() the fence is put at once, also for the save that is being copied."""
    model, optimizer = net(gpu)
    wrapper = Wrapper(optimizer)
    with checkpointer(job) as ckpt:
        ckpt.attach(wrapper)
        gpu.slow()
        handles = [ckpt.save(1, {"model": model})]
        wrapper.step()
        handles.append(ckpt.save(2, {"model": model}))
        ckpt.detach()
        gpu.kernel(lambda: model.weight.data.fill_(9))
        handles.append(ckpt.save(3, {"model": model}))
        gpu.kernel(lambda: model.weight.data.fill_(0))
        for step, value in ((1, 1), (2, 2), (3, 9)):
            handles[step - 1].wait("committed", 20)
            assert only(read(job, step)["model"]["weight"], value)


def test_an_optimizer_that_was_not_attached(cluster, job, gpu):  # noqa: F811
    """Its step would not wait: the fence is put at once, and that is said."""
    model, optimizer = net(gpu)
    other = Step(gpu, [torch.nn.Parameter(gpu.tensor(filled(5)))])
    with checkpointer(job) as ckpt:
        ckpt.attach(optimizer)
        gpu.slow()
        with pytest.warns(RuntimeWarning, match="'critic'.* not attached"):
            handle = ckpt.save(1, {"actor": optimizer, "critic": other, "w": other.param_groups[0]["params"][0].data})
        other.step()
        handle.wait("committed", 10)
    assert only(read(job, 1)["w"], 5)
    with pytest.raises(cairn.InvalidError, match="register_step_pre_hook"):
        ckpt.attach(object())


def test_no_runtime(cluster, job, gpu, monkeypatch):  # noqa: F811
    """One warning says what is missing; saves and loads go through torch's copies."""
    monkeypatch.setenv("CAIRN_CUDART", "/nonexistent/libcudart.so")
    weight = gpu.tensor(filled(1))
    with checkpointer(job) as ckpt:
        with pytest.warns(RuntimeWarning, match="/nonexistent/libcudart.so") as told:
            for step in (1, 2):
                handle = ckpt.save(step, {"w": weight.fill_(step)})
                assert handle.is_reached("snapshot")
                handle.wait("committed", 10)
                assert only(read(job, step)["w"], step)
            weight.fill_(0)
            assert ckpt.load({"w": weight}, 2) == 2
        assert len(told) == 1 and only(weight, 2)
        ckpt.fence()


def test_memory_that_is_refused(cluster, job, gpu):  # noqa: F811
    """Taken for a device's, and none: that step is an error which says so, later ones go as without the runtime."""
    weight = filled(3)
    gpu.memory.append((weight.data_ptr(), weight.data_ptr() + 4 * weight.numel(), 0))
    with cairn.Checkpointer(job) as ckpt:
        with pytest.warns(RuntimeWarning, match="not of CUDA device 0") as told:
            assert ckpt.save(1, {"w": weight}) is None and isinstance(ckpt.last_error, cairn.InvalidError)
            ckpt.save(2, {"w": weight}).wait("committed", 10)
        assert sorted(w.category.__name__ for w in told) == ["RuntimeWarning", "SaveFailedWarning"]
    assert only(read(job, 2)["w"], 3)


def test_no_fence_to_be_had(cluster, job, gpu):  # noqa: F811
    """Then the program waits for the copies."""
    weight = gpu.tensor(filled(1))
    with checkpointer(job) as ckpt:
        waits = gpu.calls("cudaStreamWaitEvent")
        ckpt.save(1, {"w": weight}).wait("committed", 10)
        gpu.shim.shim_fail(b"cudaStreamWaitEvent", ctypes.c_uint64(gpu.calls("cudaStreamWaitEvent") - waits), 2)
        handle = ckpt.save(2, {"w": weight})
        assert handle.is_reached("snapshot")
        weight.fill_(9)
        handle.wait("committed", 10)
    assert only(read(job, 2)["w"], 1)


def test_fences(cluster, job, gpu):  # noqa: F811
    """In a stream that is given; in a capture, but not of what was never prepared."""
    weight, side = gpu.tensor(filled(1)), gpu.new_stream()
    with checkpointer(job, overlap=True) as ckpt:
        ckpt.fence()
        gpu.check(gpu.shim.cudaStreamBeginCapture(ctypes.c_void_p(gpu.streams[0].cuda_stream), 1))
        with pytest.raises(cairn.InvalidError, match="before the capture"):
            ckpt.fence()
        graph = ctypes.c_void_p()
        gpu.check(gpu.shim.cudaStreamEndCapture(ctypes.c_void_p(gpu.streams[0].cuda_stream), ctypes.byref(graph)))
        ckpt.prepare({"w": weight})
        gpu.check(gpu.shim.cudaStreamBeginCapture(ctypes.c_void_p(gpu.streams[0].cuda_stream), 1))
        ckpt.fence()
        gpu.check(gpu.shim.cudaStreamEndCapture(ctypes.c_void_p(gpu.streams[0].cuda_stream), ctypes.byref(graph)))
        gpu.hold()
        handle = ckpt.save(1, {"w": weight})
        ckpt.fence(side)
        gpu.kernel(lambda: weight.fill_(2), stream=side)
        gpu.release(side)
        gpu.release()
        handle.wait("committed", 10)
    assert only(read(job, 1)["w"], 1)


def test_graphs_of_a_session_before(cluster, job, gpu):  # noqa: F811
    """A graph's fence is of the session it was captured in; when the state grows there is another one."""
    small, large = gpu.tensor(filled(1)), gpu.tensor(filled(1, 24))
    with checkpointer(job, overlap=True) as ckpt:
        ckpt.prepare({"w": small})
        gpu.check(gpu.shim.cudaStreamBeginCapture(ctypes.c_void_p(gpu.streams[0].cuda_stream), 1))
        ckpt.fence()
        graph = ctypes.c_void_p()
        gpu.check(gpu.shim.cudaStreamEndCapture(ctypes.c_void_p(gpu.streams[0].cuda_stream), ctypes.byref(graph)))
        with pytest.warns(RuntimeWarning, match="captured into a CUDA graph"):
            ckpt.prepare({"w": large})
        gpu.hold()
        handle = ckpt.save(1, {"w": large})
        gpu.kernel(lambda: large.fill_(2))
        gpu.release()
        handle.wait("committed", 10)
    assert only(read(job, 1)["w"], 1)


def test_a_load_while_a_save_is_copied(cluster, job, gpu):  # noqa: F811
    """What is read does not get into the save before it."""
    weight = gpu.tensor(filled(1, 4))
    with checkpointer(job, volatile="none") as ckpt:
        ckpt.attach(Step(gpu, [weight]))
        ckpt.save(1, {"w": weight}, wait="committed")
        weight.fill_(7)
        gpu.slow()
        gpu.hold()
        handle = ckpt.save(2, {"w": weight})
        release = threading.Timer(0.5, gpu.release)
        release.start()
        ckpt.load({"w": weight}, 1)
        release.join()
        handle.wait("committed", 10)
        assert only(weight, 1)
    assert only(read(job, 2)["w"], 7)


def test_a_graph_of_a_closed_session(cluster, job, gpu):  # noqa: F811
    """Its fence holds nothing back any more, so the next session puts its own."""
    model, optimizer = net(gpu)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        ckpt = checkpointer(job)
        ckpt.attach(optimizer)
        ckpt.save(1, {"model": model}, wait="committed")
        ckpt._devices._in_graph = True
        ckpt.close()
        ckpt.save(2, {"model": model}, wait="committed")
        assert not ckpt._devices.is_left
        ckpt.close()


def test_a_failure_that_is_kept_keeps_no_state(cluster, job):
    """Neither do the errors behind it."""

    with warnings.catch_warnings(), cairn.Checkpointer(job) as ckpt:
        warnings.simplefilter("ignore")
        big = torch.zeros(100)
        alive = weakref.ref(big)
        assert ckpt.save(1, {"big": big, "odd": object()}) is None and ckpt.last_error
        del big
        gc.collect()
        assert alive() is None


def test_two_devices(cluster, job, gpu):  # noqa: F811
    tensors = [gpu.tensor(filled(i), i) for i in (0, 1)]
    with checkpointer(job) as ckpt:
        ckpt.prepare({"on": tensors})
        gpu.hold()
        handle = ckpt.save(1, {"on": tensors})
        for i in (0, 1):
            gpu.kernel(lambda i=i: tensors[i].fill_(9), i)
        gpu.release()
        handle.wait("committed", 10)
        gpu.drain()
        assert [only(t, i) for i, t in enumerate(read(job, 1)["on"])] == [True, True]
        assert only(tensors[0], 9) and only(tensors[1], 9)
        ckpt.load({"on": tensors}, 1)
        assert only(tensors[0], 0) and only(tensors[1], 1)


def test_loads_into_memory_of_the_device(cluster, job, gpu, monkeypatch):  # noqa: F811
    """Without a copy of torch's, behind what still uses the target, and strided where that is."""
    values = torch.randn(300, 200)
    with checkpointer(job) as ckpt:
        ckpt.save(1, {"w": values, "n": torch.arange(6.0), "lazy": torch.full((3,), 1 + 2j)}, wait="committed")
        copies = []
        real = _torch._copy_back
        monkeypatch.setattr(_torch, "_copy_back", lambda target, source: copies.append(real(target, source)))
        weight, wide, lazy = gpu.tensor(torch.zeros(300, 200)), gpu.tensor(torch.zeros(4, 6)), gpu.tensor(torch.zeros(3, dtype=torch.complex64))
        ckpt.prepare({"w": weight})
        waited_for = threading.Event()
        monkeypatch.setattr(_cuda, "synchronize", lambda devices: (waited_for.set(), gpu.synchronize(devices)))
        gpu.kernel(lambda: (waited_for.wait(2), weight.fill_(7)))
        moved = gpu.copied()
        ckpt.load({"w": weight, "n": wide[1], "lazy": lazy.conj()})
        gpu.drain()
        assert torch.equal(weight, values) and torch.equal(wide[1], torch.arange(6.0)) and wide.count_nonzero() == 5
        assert gpu.copied() - moved >= 240000 and len(copies) == 1 and lazy[0] == 1 - 2j


@pytest.mark.parametrize("runtime", ["there", "missing"])
def test_torch_distributed_checkpoint(cluster, job, gpu, monkeypatch, runtime):  # noqa: F811
    """StorageWriter and StorageReader: from the device and to it; without the runtime through copies, with one warning."""
    from cairn.torch import StorageReader, StorageWriter, close_sessions

    if runtime == "missing":
        monkeypatch.setenv("CAIRN_CUDART", "/nonexistent/libcudart.so")
    base = torch.arange(240.0).view(12, 20)
    state = {"dense": gpu.tensor(base), "c128": gpu.tensor(base.to(torch.complex128)), "host": base.clone(), "n": 3}
    state["t"] = gpu.tensor(base + 1).t()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", RuntimeWarning)
        writer = StorageWriter(job)
        for step in (1, 2):
            gpu.kernel(lambda: state["dense"].copy_(base * step))
            gpu.synchronize([cairn.cuda(0)])
            dcp.save(state, storage_writer=writer.at(step), no_dist=True)
            gpu.kernel(lambda: state["dense"].fill_(-1))
        gpu.drain()
        moved = gpu.copied()
        target = {k: gpu.tensor(torch.zeros_like(v)) if k != "n" else 0 for k, v in state.items() if k != "t"}
        target["t"] = gpu.tensor(torch.zeros(12, 20)).t()
        gpu.kernel(lambda: target["dense"].fill_(7))
        dcp.load(target, storage_reader=StorageReader(job, 2), no_dist=True)
    close_sessions()
    assert [str(w.message).count("/nonexistent") for w in told if w.category is RuntimeWarning] == [1, 1] * (runtime == "missing")
    assert (gpu.copied() - moved >= 960 * 4) == (runtime == "there")
    assert torch.equal(target["dense"], base * 2) and torch.equal(target["t"], (base + 1).t()) and torch.equal(target["host"], base)
    assert torch.equal(target["c128"], base.to(torch.complex128)) and target["n"] == 3


@pytest.mark.parametrize("runtime", ["there", "missing"])
def test_staging(cluster, job, gpu, monkeypatch, runtime):  # noqa: F811
    """async_save() returns before anything is copied; what the stream does then, and tensors that are dropped, change nothing."""
    from cairn.torch import StagingWriter, close_sessions

    if runtime == "missing":
        monkeypatch.setenv("CAIRN_CUDART", "/nonexistent/libcudart.so")
    base, writer, ran = torch.arange(1, 241.0).view(12, 20), StagingWriter(job), []
    state = {"a": gpu.tensor(base), "c128": gpu.tensor(base.to(torch.complex128)), "t": gpu.tensor(base + 1).t(), "host": base.clone(), "n": 3}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", RuntimeWarning)
        for step in (1, 2):
            gpu.kernel(lambda: state["a"].copy_(base * step))
            gpu.synchronize([cairn.cuda(0)])
            dropped = gpu.tensor(base * 3)
            if step > 1:  # to open the device waits for it
                gpu.hold()
            future = dcp.async_save({**state, "dropped": dropped}, storage_writer=writer.at(step), no_dist=True)
            del dropped
            ran.append(gpu.kernel(lambda: state["a"].fill_(-1)))
            gpu.release(gpu.streams[0])
            assert step == 1 or runtime == "missing" or not (ran[-1].wait(0.05) or future.done())
            gpu.release()
            future.result(60)
            del future
            gpu.drain()
            back = {k: torch.zeros_like(v) if k != "n" else 0 for k, v in state.items()} | {"dropped": torch.zeros(12, 20)}
            dcp.load(back, storage_reader=cairn.torch.StorageReader(job, step), no_dist=True)
            assert torch.equal(back["a"], base * step) and torch.equal(back["dropped"], base * 3) and torch.equal(back["host"], base)
            assert torch.equal(back["t"], (base + 1).t()) and torch.equal(back["c128"], base.to(torch.complex128))
            state["a"] = gpu.tensor(base)
    writer.close()
    close_sessions()
    assert [str(w.message).count("/nonexistent") for w in told if w.category is RuntimeWarning] == [1] * (runtime == "missing")
    gc.collect()
    assert len(gpu.let_go) >= 2


def test_a_writer_that_waits_no_longer(cluster, job, gpu):  # noqa: F811
    """Its tensors are held and behind a fence until they are copied; the same step cannot be had again, and the next one can."""
    from cairn.torch import StorageWriter

    def save(step, **state):
        writer = StorageWriter(job, step, session=session, rank=0, world_size=1, timeout=0.3 if step == 1 else 30)
        dcp.save(state, storage_writer=writer, no_dist=True)

    weight = gpu.tensor(filled(1))
    with cairn.Session(job, arena_bytes=16 * MIB) as session:
        session.use_device(cairn.cuda(0))
        gpu.hold()
        with pytest.raises(BaseException, match="being copied.*save the next one"):
            save(1, w=weight, dropped=gpu.tensor(filled(1)))
        gc.collect()
        ran = gpu.kernel(lambda: weight.fill_(2))
        gpu.release(gpu.streams[0])
        assert gpu.let_go == [] and not ran.wait(0.1)
        gpu.release()
        assert ran.wait(10)
        with pytest.raises(BaseException, match="ExistsError.*step 1"):
            save(1, w=weight)
        while session._kept:
            session._let_go()
        save(2, w=weight)
        gc.collect()
        assert len(gpu.let_go) == 1
        for step in (1, 2):
            with session.restore(step) as restore:
                back = torch.zeros_like(weight)
                restore.add("w", "F32", back.shape, back.data_ptr(), keep=back)
                restore.run(30)
            assert only(back, step)


def test_a_promise_about_tensors_on_a_gpu(cluster, job, gpu):  # noqa: F811
    """Copies, fence and volatile buffers are as without it; memory that is replaced is held until it is copied."""
    model, optimizer = net(gpu)
    state = {"model": model, "optimizer": optimizer}
    with checkpointer(job) as ckpt:
        ckpt.attach(optimizer)
        ckpt.prepare(state, static=True)
        for step in range(1, 4):
            gpu.hold()
            handle = ckpt.save(step, state)
            assert ckpt._layout.is_promised and not handle.is_reached("snapshot")
            gpu.kernel(lambda: model.mean.fill_(0))
            optimizer.step()
            gpu.release()
            handle.wait("committed", 60)
            found = read(job, step)["model"]
            assert only(found["weight"], step) and only(found["mean"], 1)
            gpu.kernel(lambda: model.mean.fill_(1))
        model.weight.data = gpu.tensor(filled(9, 2))
        with pytest.warns(RuntimeWarning, match="model.weight"):
            ckpt.save(4, state, wait="committed")
        assert only(read(job, 4)["model"]["weight"], 9)


def test_tensors_of_the_host_between_those_of_a_gpu(cluster, job, gpu):  # noqa: F811
    """AdamW's steps: they lie apart in the image, or no part of it would be the device's alone, which it hashes and leaves out."""
    moments = {i: {"step": torch.tensor(1.0), "avg": gpu.tensor(filled(i)[:9000]), "sq": gpu.tensor(filled(i)[:9000])} for i in range(64)}
    whole = 2 * 64 * 36000
    unchanged = []
    with checkpointer(job, track=True, arena=8 * MIB) as ckpt:  # room for one: each save gets the same pages
        for step in range(1, 4):
            moments[3]["step"].fill_(step)
            handle = ckpt.save(step, {"optimizer": moments}, wait="snapshot")
            assert handle.info()["device_bytes"] == whole
            unchanged.append(handle.info()["unchanged_bytes"])
            handle.wait("committed", 10)
        assert max(unchanged) >= whole - MIB, unchanged
        back = read(job, 3)["optimizer"]
        assert back[3]["step"] == 3 and only(back[63]["sq"], 63)


def test_the_shim_is_there():
    """It is built with everything else: without it this file would test nothing."""
    assert SHIM.exists()
