# SPDX-License-Identifier: Apache-2.0
"""Ranks as forked children: as ranks.py, for tests that have imported torch already and would pay for it again in every rank.

    results = run_forked(4, module.save, {"job": job}, timeout=60)

The parent has no process group and no session open. A child never returns into the test that forked it.
"""
import json
import os
import pathlib
import signal
import sys
import tempfile
import time
import traceback
import uuid

from ranks import RankFailed, environment, free_port


def run_forked(world, function, arguments=None, timeout=60.0, start=None):
    """Calls the function in `world` children, in the environment that torchrun would give them, and returns what they return."""
    port, start = free_port(), start or f"start-{uuid.uuid4().hex[:12]}"
    with tempfile.TemporaryDirectory(prefix="cairn-ranks-") as place:
        children = {}
        try:
            for rank in range(world):
                env = environment(rank, world, port, start)
                children[rank] = _fork(pathlib.Path(place), rank, env, function, arguments or {})
            _wait(children, function, timeout, pathlib.Path(place))
            return [json.loads((pathlib.Path(place) / f"{rank}.out").read_text()) for rank in range(world)]
        finally:
            for child in children.values():
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)


def _fork(place, rank, env, function, arguments):
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        err = os.open(place / f"{rank}.err", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(err, 1)
        os.dup2(err, 2)
        os.environ.update(env)
        (place / f"{rank}.out").write_text(json.dumps(function(**arguments)))
        status = 0
    except BaseException:  # noqa: BLE001 - a child must not go on as if it were the test
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def _wait(children, function, timeout, place):
    """Until all have ended well; who has ended is taken out of the children."""
    end = time.monotonic() + timeout
    while children:
        for rank, child in list(children.items()):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                del children[rank]
                if status:
                    time.sleep(1.0)  # what the others say may be the cause
                    raise RankFailed(f"{function.__name__}: rank {rank} ended with status {status}\n{_errors(place)}")
        if time.monotonic() > end:
            raise RankFailed(f"{function.__name__}: ranks {sorted(children)} did not end within {timeout} s\n{_errors(place)}")
        time.sleep(0.01)


def _errors(place):
    return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-6000:]}" for path in sorted(place.glob("*.err")))
