# SPDX-License-Identifier: Apache-2.0
"""What a run needs and a fresh clone has not: the release build, a Python environment for the peers, and a trained state. All of it lies under
build/ and is used again."""
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

PACKAGES = ["torch==2.13.0", "safetensors", "numpy", "matplotlib"]


def command(args, seconds, cwd=None):
    done = subprocess.run([str(a) for a in args], cwd=cwd, capture_output=True, text=True, timeout=seconds)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, args))} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")


def build(root, say):
    say("building (release) ...")
    command(["cmake", "--preset", "release"], 300, root)
    command(["cmake", "--build", "--preset", "release", "--target", "bench-all", "-j", str(os.cpu_count())], 1800, root)
    return root / "build" / "release"


def venv(root, say, name="bench-venv", packages=PACKAGES):
    """The environment's python. A mark is written last: what was broken off is made again."""
    where = root / "build" / name
    mark, wanted = where / "complete", json.dumps(packages)
    if not mark.exists() or mark.read_text() != wanted:
        say(f"making a Python environment with {', '.join(packages)} in {where} ...")
        if not (where / "bin" / "python").exists():
            command([sys.executable, "-m", "venv", where], 300)
        command([where / "bin" / "python", "-m", "pip", "install", "--quiet", *packages], 3600)
        mark.write_text(wanted)
    return where / "bin" / "python"


def state(root, python, where, arguments, say):
    """Trains once for each set of arguments and version of the trainer; the result is kept."""
    trainer = root / "bench" / "lib" / "train.py"
    wanted = hashlib.sha256(trainer.read_bytes() + json.dumps(arguments).encode()).hexdigest()
    mark = where / "made-by"
    if not mark.exists() or mark.read_text() != wanted:
        say(f"training a model for its state, into {where} ...")
        shutil.rmtree(where, ignore_errors=True)
        command([python, trainer, "--out", where, *arguments], 1200)
        mark.write_text(wanted)
    return json.loads((where / "meta.json").read_text())


def room(directory, gib):
    """A message when there is not enough room on the disk, or None."""
    free = shutil.disk_usage(directory).free / 2**30
    if free >= gib:
        return None
    return f"{pathlib.Path(directory).resolve()} has {free:.1f} GiB free and this needs {gib}: give another place with --directory"
