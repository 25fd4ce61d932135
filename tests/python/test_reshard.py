# SPDX-License-Identifier: Apache-2.0
"""Saved on four ranks, loaded on 1, 2, 3 and 6: through torch.distributed.checkpoint and through cairn.Checkpointer, which has
no plan at all. The four ranks that save are processes with gloo; those that load are played one after the other by this
process, with torch's fake process group."""
import contextlib

import pytest

torch = pytest.importorskip("torch")
import torch.distributed as dist  # noqa: E402
import torch.distributed.checkpoint as dcp  # noqa: E402
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner  # noqa: E402
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: E402

import cairn  # noqa: E402
import reshard_ranks as states  # noqa: E402
from cairn.torch import StorageReader, close_sessions  # noqa: E402
from ranks import run_ranks  # noqa: E402

WORLDS = (1, 2, 3, 6)


@pytest.fixture(scope="module")
def saved(cluster):
    assert run_ranks(4, "reshard_ranks:save", {"job": "reshard"}, timeout=120) == ["saved"] * 4
    yield "reshard"
    close_sessions()


@contextlib.contextmanager
def rank_of(rank, world):
    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    try:
        yield init_device_mesh("cpu", (world,))
    finally:
        dist.destroy_process_group()


def through_dcp(job, step, rank, world):
    def load(state, **options):
        dcp.load(state, checkpoint_id=step, storage_reader=StorageReader(f"{job}-dcp"), no_dist=True, **options)
    return load


def through_checkpointer(job, step, rank, world):
    def load(state, **options):
        with cairn.Checkpointer(f"{job}-own", start_id=f"load-{step}-{world}") as own:
            assert own.load(state, step, **options) == step
    return load


@pytest.mark.parametrize("way", [through_dcp, through_checkpointer])
@pytest.mark.parametrize("world", WORLDS)
def test_fsdp2_on_another_number_of_ranks(saved, way, world):
    """Model and optimizer, uneven shards; every rank of the new world has exactly its part."""
    for rank in range(world):
        with rank_of(rank, world) as mesh:
            state = states.zero(states.fsdp_state(mesh))
            way(saved, 1, rank, world)(state)
            assert states.check(state) > 15


@pytest.mark.parametrize("way", [through_dcp, through_checkpointer])
def test_tensor_parallel_to_data_parallel(saved, way):
    for world in (1, 3):
        for rank in range(world):
            with rank_of(rank, world) as mesh:
                state = states.data_parallel(mesh)
                way(saved, 2, rank, world)(state)
                assert states.check(state) == 3


@pytest.mark.parametrize("way", [through_dcp, through_checkpointer])
def test_a_mesh_of_two_dimensions_to_whole_tensors(saved, way):
    """Shards of both dimensions are put together, and of replicas one is enough."""
    with rank_of(0, 1) as mesh:
        state = states.whole(states.two_dimensional(init_device_mesh("cpu", (1, 1))))
        way(saved, 3, 0, 1)(state)
        assert states.check(state) == 2


def test_staged_saves_reshard_alike(saved):
    """What was staged into the arena is what async_save() was called with, though training went on at once."""
    with rank_of(1, 3) as mesh:
        state = states.zero(states.fsdp_state(mesh))
        through_dcp(saved, 4, 1, 3)(state)
        assert states.check(state) > 15


def test_parts_and_renames(saved):
    """Only some names; a name that is not there, where that is allowed; and other names for the same tensors."""
    with rank_of(1, 2) as mesh:
        for load, partial in ((through_dcp(saved, 2, 1, 2), {"planner": DefaultLoadPlanner(allow_partial_load=True)}),
                              (through_checkpointer(saved, 2, 1, 2), {"strict": False})):
            state = {"attention": {"wo": states.data_parallel(mesh)["attention"]["wo"]}, "new": torch.full((2,), 7.0)}
            load(state, **partial)
            assert (state.pop("new") == 7).all() and states.check(state) == 1

        def called(name):
            return name.replace("mixer", "attention")

        state = {"mixer": states.data_parallel(mesh)["attention"]}
        through_checkpointer(saved, 2, 1, 2)(state, rename={"mixer": "attention"})
        assert states.check(state, called) == 3
        state = {"mixer": states.data_parallel(mesh)["attention"]}
        reader = StorageReader(f"{saved}-dcp", rename={"mixer": "attention"})
        dcp.load(state, checkpoint_id=2, storage_reader=reader, no_dist=True)
        assert states.check(state, called) == 3


def test_each_reads_what_the_other_saved(saved):
    """One format: the names and the slices are the same, whoever wrote them."""
    with rank_of(2, 3) as mesh:
        state = states.zero(states.fsdp_state(mesh))
        dcp.load(state, checkpoint_id=1, storage_reader=StorageReader(f"{saved}-own"), no_dist=True)
        assert states.check(state) > 15
        state = states.data_parallel(mesh)
        with cairn.Checkpointer(f"{saved}-dcp", start_id="cross") as own:
            own.load(state, 2, strict=False)
        assert states.check(state) == 3
