# SPDX-License-Identifier: Apache-2.0
"""States of test_reshard.py, the four ranks that save them, and those that load them.

What a tensor holds follows from its name alone, so every process knows the whole of each and compares its own part.
"""
import warnings
import zlib

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

import cairn
from cairn.torch import StagingWriter, StorageReader, StorageWriter

warnings.filterwarnings("ignore")


class Model(torch.nn.Module):
    """Sizes that no world size here divides."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(31, 13)
        self.first = torch.nn.Linear(13, 22)
        self.norm = torch.nn.LayerNorm(22)
        self.second = torch.nn.Linear(22, 5, bias=False)
        self.register_buffer("seen", torch.zeros(3, dtype=torch.int64))


def fsdp_state(mesh):
    """Model and optimizer under FSDP2: the optimizer's state is made by one step on zeros."""
    model = Model()
    for layer in (model.first, model.second):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return with_optimizer(model)


def with_optimizer(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    parts = get_state_dict(model, optimizer)
    return {"model": parts[0], "optim": parts[1]}


def placed(mesh, placements):
    """Tensors with given placements: name -> placements."""
    state = {}
    for name, (shape, of_it) in placements.items():
        local, _ = compute_local_shape_and_global_offset(shape, mesh, of_it)
        stride = torch.empty(shape, device="meta").stride()
        state[name] = DTensor.from_local(torch.zeros(local), mesh, of_it, run_check=False, shape=torch.Size(shape), stride=stride)
    return state


def tensor_parallel(mesh):
    return {"attention": placed(mesh, {
        "wq": ((12, 10), [Shard(0)]), "wo": ((10, 12), [Shard(1)]), "norm": ((10,), [Replicate()]),
    })}


def data_parallel(mesh):
    """The same names as tensor_parallel(), each sharded by rows."""
    return {"attention": placed(mesh, {"wq": ((12, 10), [Shard(0)]), "wo": ((10, 12), [Shard(0)]), "norm": ((10,), [Shard(0)])})}


def two_dimensional(mesh):
    return {"grid": placed(mesh, {"both": ((9, 7), [Shard(0), Shard(1)]), "hybrid": ((11, 3), [Replicate(), Shard(0)])})}


def pipeline(stages, epoch=3):
    """Stages of a pipeline, and values that are no tensors."""
    return {**{f"stage{i}": {"weight": torch.zeros(3 + i, 2)} for i in stages}, "epoch": epoch, "betas": [0.9, epoch]}


def whole(state):
    """The same names, as plain tensors."""
    return {k: whole(v) if isinstance(v, dict) else torch.zeros(v.shape, dtype=v.dtype) for k, v in state.items()}


# ---- contents ----

def leaves(state, path=""):
    for key, value in state.items():
        name = f"{path}.{key}" if path else key
        if isinstance(value, dict):
            yield from leaves(value, name)
        elif isinstance(value, torch.Tensor):
            yield name, value


def full(name, shape, dtype):
    numbers = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randint(0, 1000, tuple(shape), generator=numbers).to(dtype)


def parts(name, tensor, called=None):
    """This process's memory of a tensor, and what belongs there."""
    want = full(called or name, tensor.shape, tensor.dtype)
    if not isinstance(tensor, DTensor):
        return tensor, want
    sizes, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    for dim, (size, offset) in enumerate(zip(sizes, offsets)):
        want = want.narrow(dim, min(offset, want.shape[dim]), size)
    return tensor.to_local(), want


def fill(state):
    for name, tensor in leaves(state):
        with torch.no_grad():
            memory, want = parts(name, tensor)
            memory.detach().copy_(want)
    return state


def zero(state):
    for _, tensor in leaves(state):
        (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach().zero_()
    return state


def check(state, called=lambda name: name):
    """called: the name in the checkpoint."""
    count = 0
    for name, tensor in leaves(state):
        memory, want = parts(name, tensor, called(name))
        assert torch.equal(memory.detach(), want), f"{name} {tuple(tensor.shape)}"
        count += 1
    return count


# ---- the ranks that save ----

def save(job):
    """Four ranks save through both ways: step 1 under FSDP2, step 2 tensor-parallel, step 3 on a mesh of 2 x 2, step 5 each rank
    a stage of its own; and step 4 of the DCP job is step 1 staged into the arena."""
    dist.init_process_group("cpu:gloo")
    line, grid = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2))
    states = {1: fill(fsdp_state(line)), 2: fill(tensor_parallel(line)), 3: fill(two_dimensional(grid))}
    for state in states.values():
        check(state)
    with cairn.Checkpointer(f"{job}-own") as own:
        for step, state in states.items():
            own.save(step, state, wait="committed", timeout=60)
            dcp.save(state, checkpoint_id=step, storage_writer=StorageWriter(f"{job}-dcp"))
        own.save(5, fill(pipeline([dist.get_rank()])), wait="committed", timeout=60)
    writer = StagingWriter(f"{job}-dcp")
    future = dcp.async_save(states[1], checkpoint_id=4, storage_writer=writer.at(4))
    zero(states[1])  # training goes on
    future.result(60)
    dcp.save(fill(pipeline([dist.get_rank()])), checkpoint_id=5, storage_writer=StorageWriter(f"{job}-dcp"))
    dist.barrier()
    dist.destroy_process_group()
    return "saved"


# ---- the ranks that load ----

def line():
    dist.init_process_group("cpu:gloo")
    return init_device_mesh("cpu", (dist.get_world_size(),))


def load(way, job, step, state, **options):
    """way: who loads, and whose checkpoint."""
    saved = f"{job}-own" if way in ("own", "dcp reads own") else f"{job}-dcp"
    if way.startswith("dcp"):
        rename = options.pop("rename", None)
        dcp.load(state, checkpoint_id=step, storage_reader=StorageReader(saved, rename=rename), **options)
    else:
        with cairn.Checkpointer(saved) as own:
            assert own.load(state, step, strict=way == "own" and options.pop("strict", True), **options) == step
    return state


def load_fsdp(job, cases):
    mesh = line()
    return [check(load(way, job, step, zero(fsdp_state(mesh)))) > 15 for way, step in cases]


def load_data_parallel(job):
    mesh = line()
    return [check(load(way, job, 2, data_parallel(mesh))) for way in ("dcp", "own")]


def load_whole(job):
    line()
    return [check(load(way, job, 3, whole(two_dimensional(init_device_mesh("cpu", (1, 1)))))) for way in ("dcp", "own")]


def load_pipeline(job):
    """All stages on each rank, though each was on one rank only."""
    line()
    states = [load(way, job, 5, pipeline(range(4), epoch=0)) for way in ("dcp", "dcp reads own")]
    assert all(state["epoch"] == 3 and state["betas"] == [0.9, 3] for state in states), states
    return [check(state) for state in states]


def load_parts(job):
    mesh, counts = line(), []
    for way, partial in (("dcp", {"planner": DefaultLoadPlanner(allow_partial_load=True)}), ("own", {"strict": False})):
        state = {"attention": {"wo": data_parallel(mesh)["attention"]["wo"]}, "new": torch.full((2,), 7.0)}
        load(way, job, 2, state, **partial)
        assert (state.pop("new") == 7).all()
        counts.append(check(state))
    for way in ("dcp", "own"):
        state = load(way, job, 2, {"mixer": data_parallel(mesh)["attention"]}, rename={"mixer": "attention"})
        counts.append(check(state, lambda name: name.replace("mixer", "attention")))
    return counts
