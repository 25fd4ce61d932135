# SPDX-License-Identifier: Apache-2.0
"""bench/gpu with small CPU tensors, and its C part over the double of the CUDA runtime: every family runs and says something, so that the first time on a
GPU is not the first time at all."""
import importlib
import io
import json
import os
import pathlib
import subprocess
import sys

import pytest
from gpu_double import gpu  # noqa: F401

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(os.environ["CAIRN_LIBRARY"]).resolve().parent.parent
MIB = 1 << 20
FAMILIES = ["limits", "plugin", "kernels", "cairn", "restore", "peers", "training"]  # the others are run below; conformance is a test of its own

# One figure of each thing that is to be measured.
WANTED = """disk_write pinned_to_host pinned_to_device device_read plugin_copy_over_limit plugin_held plugin_held_many plugin_load_over_limit kernel_pack
held_small held_most_small copy_over_limit_small blocked_small durable_small restore_hot_over_limit_small restore_disk_small blocked_dcp_pinned_small
blocked_torch_save_disk_small blocked_small_over_dcp mean_step_every_10_over_alone saving_step_p99_over_alone_p99 held_training copy_hidden step_every_step
blocked_training_over_dcp""".split()


def test_every_family_says_something(tmp_path):
    shim = BUILD / "tests" / "shim" / "libcairn-shim-cudart.so"
    report = tmp_path / "report.json"
    done = subprocess.run([sys.executable, ROOT / "bench" / "gpu", "--cpu", "--build", BUILD, "--directory", tmp_path, "--json", report,
                           "--only", ",".join(FAMILIES)], capture_output=True, text=True, timeout=150, env={**os.environ, "CAIRN_CUDART": str(shim)})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = {row["name"]: row for row in json.loads(report.read_text())["rows"]}
    lacking = [name for name in WANTED if name not in rows or rows[name]["median"] is None]
    assert not lacking, done.stdout[-6000:]
    assert all(row["target"] is None for row in rows.values())  # nothing is judged by figures of CPU tensors
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]  # and nothing is left


def test_a_build_that_lacks_something_is_said_so(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "bench" / "gpu", "--cpu", "--build", tmp_path], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "cairnd" in done.stderr and "--bundle" in done.stderr, done.stderr


# ---- the device's path, over the double of the runtime ----


class Findings(dict):
    """What a family told."""

    def __init__(self, text):
        messages = [json.loads(line) for line in text.splitlines()]
        super().__init__({m["row"]["name"]: m["row"] for m in messages if "row" in m})
        self.missing = [m["missing"] for m in messages if "missing" in m]
        self.said = [m["say"] for m in messages if "say" in m]


def family(name, gpu, monkeypatch, **options):
    """Runs it here, with a state in the double's memory."""
    monkeypatch.syspath_prepend(str(ROOT / "bench" / "lib"))
    import gpu_device
    import gpu_state
    import gpu_worker

    module = importlib.import_module(f"gpu_{name}")
    monkeypatch.setattr(module, "make", lambda *a: {k: gpu.tensor(t) for k, t in gpu_state.make(*a).items()})
    answers = io.StringIO()
    common = dict(device="cuda", link_bytes=MIB, tensor_bytes=MIB // 2, reps=2, many=50, many_bytes=4096, many_reps=2, bytes=2 * MIB, seconds=60,
                  disk_write=None, one_on_disk=False, tag=name, socket=os.environ["CAIRN_SOCKET"])
    worker = gpu_worker.Worker({**common, **options}, answers)
    worker.on, worker.ask = gpu_device.Cpu(), lambda what: None
    getattr(module, f"run_{name}")(worker)
    return Findings(answers.getvalue())


def test_saves_go_the_devices_way_and_restores_too(cluster, gpu, job, monkeypatch):  # noqa: F811
    saved = family("cairn", gpu, monkeypatch, job=job)
    assert len(saved["copy_over_limit_small"]["values"]) == 2 and not saved.missing and not saved.said
    before = gpu.shim.shim_copied_bytes()
    restored = family("restore", gpu, monkeypatch, job=job)
    assert restored["restore_hot_over_limit_small"]["values"] and gpu.shim.shim_copied_bytes() - before >= 4 * 2 * MIB


def test_on_a_disk_for_one_checkpoint_a_single_save_tells_all(cluster, gpu, job, monkeypatch):  # noqa: F811
    saved = family("cairn", gpu, monkeypatch, job=job, one_on_disk=True)
    assert [len(saved[f"{name}_small"]["values"]) for name in ("held", "copy_over_limit", "blocked", "durable")] == [1, 1, 1, 1]


def test_what_goes_through_torch_is_no_figure(cluster, gpu, job, monkeypatch):  # noqa: F811
    monkeypatch.setenv("CAIRN_PLUGIN_PATH", "/nonexistent")
    with pytest.raises(RuntimeError, match="did not go from the device"), pytest.warns(RuntimeWarning, match="copied by torch"):
        family("cairn", gpu, monkeypatch, job=job)


def test_many_and_unchanged_tensors(cluster, gpu, job, monkeypatch):  # noqa: F811
    assert family("many", gpu, monkeypatch, job=f"{job}-many")["held_many"]["values"]
    found = family("track", gpu, monkeypatch, job=f"{job}-track")
    assert min(found["frozen_half_copied_over_changed"]["values"]) < 1.5  # once both snapshots have been seen
