# SPDX-License-Identifier: Apache-2.0
"""bench/gpu with small CPU tensors, and its C part over the double of the CUDA runtime: every family runs and says something, so that the first time on a
GPU is not the first time at all."""
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(os.environ["CAIRN_LIBRARY"]).resolve().parent.parent
FAMILIES = ["limits", "plugin", "cairn", "restore", "peers", "training", "many", "track", "long"]  # conformance is a test of its own

# One figure of each thing that is to be measured.
WANTED = """disk_write pinned_to_host pinned_to_device device_read plugin_copy_over_limit plugin_held plugin_held_many plugin_load_over_limit
held_small held_most_small copy_over_limit_small blocked_small durable_small restore_hot_over_limit_small restore_disk_small blocked_dcp_pinned_small
blocked_torch_save_disk_small blocked_small_over_dcp mean_step_every_10_over_alone saving_step_p99_over_alone_p99 held_training copy_hidden step_every_step
blocked_training_over_dcp blocked_long held_many copy_many_over_limit frozen_half_copied_over_changed source_sums_over_plain""".split()


def test_every_family_says_something(tmp_path):
    shim = BUILD / "tests" / "shim" / "libcairn-shim-cudart.so"
    report = tmp_path / "report.json"
    done = subprocess.run([sys.executable, ROOT / "bench" / "gpu", "--cpu", "--build", BUILD, "--directory", tmp_path, "--json", report,
                           "--only", ",".join(FAMILIES)], capture_output=True, text=True, timeout=100, env={**os.environ, "CAIRN_CUDART": str(shim)})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = {row["name"]: row for row in json.loads(report.read_text())["rows"]}
    lacking = [name for name in WANTED if name not in rows or rows[name]["median"] is None]
    assert not lacking, done.stdout[-6000:]
    assert all(row["target"] is None for row in rows.values())  # nothing is judged by figures of CPU tensors
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]  # and nothing is left


def test_a_build_that_lacks_something_is_said_so(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "bench" / "gpu", "--cpu", "--build", tmp_path], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "cairnd" in done.stderr and "--bundle" in done.stderr, done.stderr
