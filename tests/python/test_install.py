# SPDX-License-Identifier: Apache-2.0
"""`pip install client/python` into an empty environment, from this tree, with its own libcairn."""
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

USE = """
import array, ctypes, os, pathlib, sys
import cairn
from cairn import _lib
assert not {"torch", "numpy"} & set(sys.modules), "import cairn must not import them"
here = pathlib.Path(cairn.__file__).parent
assert (here / "py.typed").exists() and here.is_relative_to(sys.prefix), here
assert pathlib.Path(_lib.lib()._name) == here / "lib" / "libcairn.so.0", _lib.lib()._name
os.environ["CAIRN_CUDART"] = "/nonexistent/libcudart.so"
with cairn.Session("installed", observer=True) as session:
    try:
        session.use_device(cairn.cuda(0))
    except cairn.UnsupportedError as e:
        assert "/nonexistent" in str(e), e  # asked by the plugin, which lies beside libcairn
with cairn.Checkpointer("installed", raise_errors=True) as ckpt:
    ckpt.save(1, {"step": 1}, wait="committed", timeout=30)
assert cairn.read("installed") == {"step": 1}
import importlib.metadata
print(importlib.metadata.version("cairn"))
"""


def run(*command, seconds=240, **kwargs):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=seconds, check=False, **kwargs)


def test_installs_into_an_empty_environment(cluster, tmp_path):
    venv = tmp_path / "venv"
    assert run(sys.executable, "-m", "venv", venv).returncode == 0
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CAIRN_LIBRARY")}
    done = run(venv / "bin" / "pip", "install", "--disable-pip-version-check", "--no-input", ROOT / "client" / "python", env=env)
    said = done.stdout + done.stderr
    if done.returncode and ("Could not find a version" in said or "ConnectionError" in said or "Connection refused" in said):
        pytest.skip(f"no package index to build with: {said[-300:]}")
    assert done.returncode == 0, said[-4000:]
    done = run(venv / "bin" / "python", "-c", USE, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    version = next(line for line in (ROOT / "CMakeLists.txt").read_text().splitlines() if line.startswith("project("))
    assert f"VERSION {done.stdout.strip()} " in version
