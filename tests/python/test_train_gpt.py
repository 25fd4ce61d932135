# SPDX-License-Identifier: Apache-2.0
"""The heart of scripts/demo --torch: the example's GPT on two ranks, one of which is killed; torchrun starts both again, and every loss is
the same as in a run that nothing happened to. Catches whatever is missing from the state (a generator, a schedule, a position in the data, a
moment), a load that puts something elsewhere, and a killed rank from whose save a checkpoint was made all the same."""
import os
import subprocess
import sys

import conftest
import pytest

PYTHON = conftest.ROOT / "client" / "python"
SCRIPT = PYTHON / "examples" / "train_gpt.py"
TINY = ["--layers", "2", "--width", "32", "--heads", "2", "--context", "16", "--steps", "12", "--every", "4", "--device", "cpu"]


def torchrun(root, job, *args):
    """What was printed, and the lines of the losses."""
    losses = root / f"{job}.losses"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1", SCRIPT,
               "--job", job, "--losses", losses, *TINY, *args]
    env = dict(os.environ, OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo", PYTHONPATH=str(PYTHON / "src"))
    with subprocess.Popen([str(c) for c in command], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            out, _ = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun ends its ranks
            out, _ = process.communicate(timeout=40)
            pytest.fail(f"the training did not end:\n{out[-6000:]}")
    assert process.returncode == 0, out[-6000:]
    return out, losses.read_text().splitlines()


LONG = pytest.mark.skipif("CAIRN_LONG_TESTS" not in os.environ, reason="20 s more; set CAIRN_LONG_TESTS to have it")


@pytest.mark.parametrize("parallel, when", [("ddp", "step"), pytest.param("fsdp", "saved", marks=LONG)])
def test_killed_and_resumed_is_as_if_nothing_happened(cluster, job, parallel, when):
    at = {"step": "7", "saved": "8"}[when]
    _, expected = torchrun(cluster.root, f"{job}-whole", "--parallel", parallel)
    out, found = torchrun(cluster.root, f"{job}-killed", "--parallel", parallel, "--kill-at", at, "--kill-when", when)
    assert "kill -9 of myself" in out
    assert "resumed from step" in out
    assert len(expected) == 13  # a loss for each step, and the state
    assert found == expected
