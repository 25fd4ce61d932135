# SPDX-License-Identifier: Apache-2.0
"""One family of the measurement (or several), in a process of its own: whatever it took, memory of the GPU and pinned memory too, is free when it ends.

    gpu_worker.py '[["cairn", {"device": "cuda", "socket": ..., "seconds": ...}], ...]'

Speaks lines of JSON on its standard output: {"row": arguments of Report.add}, {"missing": ...}, {"say": text}, {"value": {name: number}} for families that
come later, {"done": tag} behind each family, and {"ask": what} which is answered with a line on its standard input."""
import gc
import importlib
import json
import logging
import os
import pathlib
import sys
import time
import traceback
import warnings

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

FAMILIES = {"limits": "gpu_limits", "cairn": "gpu_cairn", "restore": "gpu_restore", "peers": "gpu_peers", "many": "gpu_many", "track": "gpu_track",
            "training": "gpu_training", "long": "gpu_training"}


class Worker:
    """What a family is given: options as attributes, the device, and where its findings go."""

    def __init__(self, options, answers):
        self.__dict__.update(options)
        self.answers = answers
        self.end = time.monotonic() + self.seconds

    def _tell(self, **message):
        print(json.dumps(message), file=self.answers, flush=True)

    def add(self, name, unit, values, **more):
        self._tell(row={"name": name, "unit": unit, "values": list(values), **more})

    def missing(self, name, unit, why, **more):
        self._tell(missing={"name": name, "unit": unit, "why": why, **more})

    def say(self, text):
        self._tell(say=text)

    def value(self, **values):
        self._tell(value=values)

    def done(self):
        self._tell(done=self.tag)

    def ask(self, what):
        self._tell(ask=what)
        if not sys.stdin.readline():
            sys.exit(1)

    def left(self):
        return self.end - time.monotonic()

    def turns(self, n, least=1):
        """Counts to n while there is time for another like the longest so far; at least so many."""
        longest = 0.0
        for i in range(n):
            if i >= least and self.left() < longest * 1.2:
                self.say(f"no time for more than {i} turns of {n}")
                return
            begin = time.monotonic()
            yield i
            longest = max(longest, time.monotonic() - begin)


class Relay(logging.Handler):
    """What the package warns of is of interest: above all that it could not reach the device and went another way."""

    def __init__(self, worker):
        super().__init__(logging.WARNING)
        self.worker = worker

    def emit(self, record):
        self.worker.say(record.getMessage())


def one(family, options, answers):
    """Whether it went well. What fails is a row and a traceback."""
    import gpu_device

    worker = Worker(options, answers)
    worker.on = gpu_device.open_device(worker.device)
    logging.getLogger("cairn").handlers = [Relay(worker)]
    try:
        getattr(importlib.import_module(FAMILIES[family]), f"run_{family}")(worker)
        return True
    except Exception as e:  # noqa: BLE001 - the next family goes on
        traceback.print_exc()
        worker.missing(worker.tag, "s", f"{type(e).__name__}: {e}"[:600].replace("\n", " "), group=family)
        return False
    finally:
        gc.collect()
        worker.on.free()
        worker.done()


def main():
    answers = os.fdopen(os.dup(1), "w")  # what libraries print goes to stderr
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # where the machine's own name leads nowhere
    well = [one(family, options, answers) for family, options in json.loads(sys.argv[1])]
    sys.exit(0 if all(well) else 1)


if __name__ == "__main__":
    main()
