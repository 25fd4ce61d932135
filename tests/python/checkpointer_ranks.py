# SPDX-License-Identifier: Apache-2.0
"""What the ranks of test_checkpointer.py do."""
import os

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Replicate, Shard, _StridedShard

import cairn
from cairn import _torch

SHAPES = {"even": (8, 6), "uneven": (7, 5), "vector": (13,), "few": (3, 2), "matrix": (10, 9)}


def whole(name):
    """The tensor that all ranks have parts of."""
    shape = SHAPES[name]
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape) + 1000 * sorted(SHAPES).index(name)


def placements(dims):
    if dims == 1:
        return {"even": [Shard(0)], "uneven": [Shard(1)], "vector": [Shard(0)], "few": [Replicate()], "matrix": [Shard(0)]}
    return {"even": [Replicate(), Shard(0)], "uneven": [Shard(0), Shard(1)], "vector": [_StridedShard(0, split_factor=2), Shard(0)],
            "few": [Replicate(), Replicate()], "matrix": [Shard(0), _StridedShard(0, split_factor=3)]}


def part(mesh, full, places):
    """A DTensor of this rank's part, made without a word to the others."""
    sizes = [mesh.size(d) for d in range(mesh.ndim)]
    local = full
    for d, runs in enumerate(_torch.shard_runs(full.shape, sizes, mesh.get_coordinate(), places)):
        index = torch.tensor([i for begin, end in runs for i in range(begin, end)], dtype=torch.long)
        local = local.index_select(d, index)
    return DTensor.from_local(local.contiguous(), mesh, places, run_check=False, shape=full.shape, stride=full.stride())


def state_of(mesh, empty=False):
    model = {n: part(mesh, torch.full(SHAPES[n], -1.0) if empty else whole(n), p) for n, p in placements(mesh.ndim).items()}
    same = torch.zeros(300, 70) if empty else torch.arange(21000.0).view(300, 70)  # all ranks hold it alike
    own = torch.tensor([-1.0]) if empty else torch.tensor([float(dist.get_rank())])
    return {"model": model, "same": same, "small": torch.zeros(3) if empty else torch.ones(3), "own": {"rank": own}, "step": 0 if empty else 5}


def replicated(name):
    return name in ("same", "small")


def mesh_of(world):
    dist.init_process_group("gloo")
    return init_device_mesh("cpu", (2, 2) if world == 4 else (world,))


def save(job):
    world = int(os.environ["WORLD_SIZE"])
    mesh = mesh_of(world)
    with cairn.Checkpointer(job, replicated=replicated, raise_errors=True) as ckpt:
        assert (ckpt.rank, ckpt.world_size, ckpt.launch.source) == (dist.get_rank(), world, "torch.distributed")
        state = state_of(mesh)
        ckpt.save(1, state)
        bytes_ = ckpt.save(2, state, wait="committed", timeout=30).info()["bytes"]
    return bytes_


def load(job):
    """The names of what did not come back as it was."""
    mesh = mesh_of(int(os.environ["WORLD_SIZE"]))
    state, expect = state_of(mesh, empty=True), state_of(mesh)
    with cairn.Checkpointer(job, raise_errors=True) as ckpt:
        step = ckpt.load(state)
    wrong = [n for n in SHAPES if not torch.equal(state["model"][n]._local_tensor, expect["model"][n]._local_tensor)]
    wrong += [n for n in ("same", "small", "step") if not (state[n] == expect[n] if n == "step" else torch.equal(state[n], expect[n]))]
    return {"step": step, "wrong": wrong, "own": state["own"]["rank"].item()}

