# SPDX-License-Identifier: Apache-2.0
"""Ranks of test_dcp.py: real processes with gloo."""
import warnings

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed._shard import sharded_tensor
from torch.distributed._shard.sharding_spec import ChunkShardingSpec
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import cairn
from cairn.torch import StagingWriter, StorageReader, StorageWriter
from cluster import wait_until

warnings.filterwarnings("ignore")


def full(name, *shape):
    """The whole of a tensor, the same on every rank."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(sum(name.encode())))


def local_equal(tensor, want):
    return torch.equal(tensor.full_tensor() if isinstance(tensor, DTensor) else tensor, want)


def sharded(mesh, fill):
    """A state of every kind of placement; empty where fill is false."""
    def make(name, *shape):
        return full(name, *shape) if fill else torch.zeros(*shape)

    rank = dist.get_rank()
    state = {
        "rows": distribute_tensor(make("rows", 7, 5), mesh, [Shard(0)], src_data_rank=None),
        "columns": distribute_tensor(make("columns", 4, 6), mesh, [Shard(1)], src_data_rank=None),
        "thin": distribute_tensor(make("thin", 1, 3), mesh, [Shard(0)], src_data_rank=None),  # nothing of it on rank 1
        "replicated": distribute_tensor(make("replicated", 3, 3), mesh, [Replicate()], src_data_rank=None),
        "plain": make("plain", 1000),
        f"only-{rank}": make(f"only-{rank}", 3),
        "epoch": 5 if fill else 0,
    }
    return state


def check(state):
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            assert local_equal(value, full(name, *value.shape)), name
    assert state["epoch"] == 5


class Failing(DefaultSavePlanner):
    """Fails on rank 1, after planning."""

    def resolve_data(self, write_item):
        if dist.get_rank() == 1:
            raise ValueError("rank 1 cannot")
        return super().resolve_data(write_item)


def two_ranks(job):
    dist.init_process_group("cpu:gloo")
    mesh = init_device_mesh("cpu", (2,))

    dcp.save(sharded(mesh, True), checkpoint_id=1, storage_writer=StorageWriter(job))
    target = sharded(mesh, False)
    dcp.load(target, checkpoint_id=1, storage_reader=StorageReader(job))
    check(target)
    target = sharded(mesh, False)
    dcp.load(target, storage_reader=StorageReader(job))  # the newest, the same on both
    check(target)
    stored_once(job, 1)

    try:
        dcp.save(sharded(mesh, True), checkpoint_id=2, storage_writer=StorageWriter(job, timeout=5), planner=Failing())
        raise AssertionError("a failing rank went unnoticed")
    except CheckpointException as e:
        assert "rank 1 cannot" in str(e), e
    wait_until("rank 0 is free of step 2, which rank 1 has given up", lambda: state_of(job, 2) == "aborted", 20)

    future = dcp.async_save(sharded(mesh, True), checkpoint_id=3, storage_writer=StorageWriter(job))
    future.result(60)
    process_save(job, mesh).result(90)
    for step in (3, 4):
        target = sharded(mesh, False)
        dcp.load(target, checkpoint_id=step, storage_reader=StorageReader(job))
        check(target)
    each_for_itself(job)
    staged(job, mesh)
    staged_shards(f"{job}-shards")
    dist.barrier()
    dist.destroy_process_group()
    return "ok"


def staged_shards(job):
    """ShardedTensors, of which a rank has several pieces, through the arena and back."""
    spec = ChunkShardingSpec(dim=0, placements=["rank:0/cpu", "rank:1/cpu", "rank:1/cpu", "rank:0/cpu"])
    tensor, target = (sharded_tensor.zeros(spec, 10, 3) for _ in range(2))
    want = full("shards", 10, 3)
    for shard in tensor.local_shards():
        begin = shard.metadata.shard_offsets[0]
        shard.tensor.copy_(want[begin : begin + shard.tensor.shape[0]])
    writer = StagingWriter(job)
    future = dcp.async_save({"t": tensor}, storage_writer=writer.at(1))
    for shard in tensor.local_shards():
        shard.tensor.zero_()
    future.result(60)
    dcp.load({"t": target}, checkpoint_id=1, storage_reader=StorageReader(job))
    for shard in target.local_shards():
        begin = shard.metadata.shard_offsets[0]
        assert torch.equal(shard.tensor, want[begin : begin + shard.tensor.shape[0]])


def each_for_itself(job):
    """No collective at all: the checkpoint is there when both ranks have saved."""
    job, rank = f"{job}-alone", dist.get_rank()
    state = {f"mine-{rank}": full(f"mine-{rank}", 6), "plain": full("plain", 10), "epoch": 5}
    dcp.save(state, checkpoint_id=1, storage_writer=StorageWriter(job, rank=rank, world_size=2), no_dist=True)
    target = {"mine-0": torch.zeros(6), "mine-1": torch.zeros(6), "plain": torch.zeros(10), "epoch": 0}
    dcp.load(target, checkpoint_id=1, storage_reader=StorageReader(job), no_dist=True)
    check(target)


def staged(job, mesh):
    """The first staged save stores plain tensors on both ranks, later ones each once; what disappears from the rank that was to
    store it fails one save, and the next is whole again. (Another job: the background process holds this rank of the first.)"""
    job, writer = f"{job}-staged", StagingWriter(f"{job}-staged", timeout=10)
    for step in (1, 2, 3):
        dcp.async_save(sharded(mesh, True), storage_writer=writer.at(step)).result(60)
        target = sharded(mesh, False)
        dcp.load(target, checkpoint_id=step, storage_reader=StorageReader(job))
        check(target)
        if step > 1:
            stored_once(job, step)
    # "plain" is left by one rank to the other, which drops it now.
    state = sharded(mesh, True)
    left = any(index.fqn == "plain" for kept in writer._learned.values() for index in kept)
    if not left:
        del state["plain"]
    try:
        dcp.async_save(state, storage_writer=writer.at(4)).result(60)
        raise AssertionError("a lost tensor went unnoticed")
    except CheckpointException as e:
        assert '"plain"' in str(e), e
    state = sharded(mesh, True)
    if not left:
        del state["plain"]
    dcp.async_save(state, storage_writer=writer.at(5)).result(60)
    target = sharded(mesh, False)
    dcp.load(target, checkpoint_id=5, storage_reader=StorageReader(job))
    check(target)


def state_of(job, step):
    with cairn.Session(job, observer=True) as s:
        return {c["step"]: c["state"] for c in s.query("list", job)["checkpoints"]}.get(step)


def start_again(job, step, size):
    """One start of a job: what is there is loaded, without saying which step; then a larger state is saved."""
    dist.init_process_group("cpu:gloo")
    found = None
    if step > 1:
        target = {"a": torch.zeros(size // 1000), "step": 0}
        dcp.load(target, storage_reader=StorageReader(job))
        assert (target["a"] == step - 1).all()
        found = target["step"]
    dcp.save({"a": torch.full((size,), float(step)), "step": step}, checkpoint_id=step, storage_writer=StorageWriter(job))
    dist.barrier()
    dist.destroy_process_group()
    return found


def process_save(job, mesh):
    """By a background process; this one's session of the rank goes over to it."""
    return dcp.async_save(sharded(mesh, True), checkpoint_id=4, storage_writer=StorageWriter(job),
                          async_checkpointer_type=AsyncCheckpointerType.PROCESS)


def stored_once(job, step):
    """What ranks hold alike is stored by one of them."""
    with cairn.Session(job, observer=True) as s, s.restore(step) as r:
        places = [(x.name, x.offset) for x in r.slices() if not x.name.startswith(".cairn/")]
    assert len(places) == len(set(places)), places
