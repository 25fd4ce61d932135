# SPDX-License-Identifier: Apache-2.0
"""Saved on four ranks, loaded on 1, 2, 3 and 6: through torch.distributed.checkpoint and through cairn.Checkpointer, which has
no plan at all. All ranks are processes with gloo; reshard_ranks.py is what they run."""
import pytest

torch = pytest.importorskip("torch")
import reshard_ranks as ranks  # noqa: E402
from forked import run_forked  # noqa: E402

WORLDS = (1, 2, 3, 6)


@pytest.fixture(scope="module")
def job(cluster):
    assert run_forked(4, ranks.save, {"job": "reshard"}, timeout=120) == ["saved"] * 4
    return "reshard"


@pytest.mark.parametrize("world", WORLDS)
def test_fsdp2_on_another_number_of_ranks(job, world):
    """Model and optimizer, uneven shards; every rank of the new world has exactly its part, through either way. What was
    staged into the arena (step 4) is what async_save() was called with, though training went on at once. And each way
    reads what the other has saved: one format."""
    cases = [("dcp", 1), ("dcp", 4), ("own", 1)] + ([("dcp reads own", 1), ("own reads dcp", 1)] if world == 3 else [])
    assert run_forked(world, ranks.load_fsdp, {"job": job, "cases": cases}, timeout=90) == [[True] * len(cases)] * world


@pytest.mark.parametrize("world", (1, 3))
def test_tensor_parallel_to_data_parallel(job, world):
    assert run_forked(world, ranks.load_data_parallel, {"job": job}, timeout=60) == [[3, 3]] * world


def test_a_mesh_of_two_dimensions_to_whole_tensors(job):
    """Shards of both dimensions are put together, and of replicas one is enough."""
    assert run_forked(1, ranks.load_whole, {"job": job}) == [[2, 2]]


def test_stages_of_a_pipeline_to_all_ranks(job):
    """What only one rank had is found by all, and values that are no tensors come with it."""
    assert run_forked(2, ranks.load_pipeline, {"job": job}) == [[4, 4]] * 2


def test_parts_and_renames(job):
    """Only some names; a name that is not there, where that is allowed; and other names for the same tensors."""
    assert run_forked(2, ranks.load_parts, {"job": job}) == [[1, 1, 3, 3]] * 2
