# SPDX-License-Identifier: Apache-2.0
"""Runs in the benchmark's Python environment: what people save with today, told line by line and answering with JSON, as bench-workload.

    torch_peer.py --table FILE --data FILE --directory DIR [--bytes N] [--threads N]
    save MODE    {"stall_s": until the tensors may change, "done_s": null or until it is complete and synced}
    wait         {"done_s": since the save began}; what was saved is removed then

Each tensor has memory of its own, as a trainer's has. All modes sync: files before they are complete, as a commit means it."""
import argparse
import gc
import json
import os
import pathlib
import shutil
import sys
import time
import warnings

import numpy
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

DTYPES = {"BF16": (torch.bfloat16, 2), "F32": (torch.float32, 4)}


def load(table, data, most):
    """The tensors of bench/table.c, byte for byte."""
    raw = numpy.memmap(data, numpy.uint8, "r")
    state, total = {}, 0
    lines = [line.split() for line in open(table)]
    for dtype, section, size, start, name, *dims in lines:
        kind, width = DTYPES[dtype]
        t = torch.empty(tuple(map(int, dims)), dtype=kind)
        to = t.view(-1).view(torch.uint8).numpy()
        part = raw[int(section) : int(section) + int(size)]
        at, done = int(start) % len(part) // 8 * 8, 0
        while done < len(to):
            n = min(len(part) - at, len(to) - done)
            to[done : done + n] = part[at : at + n]
            done, at = done + n, 0
        state[name] = t
        total += len(to)
        if most and total >= most:
            break
    return state, total


def sync(path):
    """A file, or all files of a directory, and the directory."""
    for p in [path, path.parent] if path.is_file() else [*path.iterdir(), path]:
        fd = os.open(p, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


class Peer:
    def __init__(self, a):
        self.state, self.bytes = load(a.table, a.data, a.bytes)
        self.directory, self.threads, self.n, self.pending = pathlib.Path(a.directory), a.threads, 0, None
        self.cached = {}  # stagers keep the memory they stage to

    def writer(self, path, **options):
        return dcp.FileSystemWriter(path, thread_count=self.threads, **options)

    def save(self, mode):
        self.n += 1
        path = self.directory / f"{mode}-{self.n}"
        begin = time.monotonic()
        future = getattr(self, "do_" + mode)(path)
        if hasattr(future, "staging_completion"):  # staged in the background: the tensors may change only after it
            future.staging_completion.result()
            future = future.upload_completion
        stall = time.monotonic() - begin
        self.pending = (begin, path, future, stall)
        return {"stall_s": stall}

    def wait(self):
        begin, path, future, stall = self.pending
        if future is not None:
            future.result()
            stall = time.monotonic() - begin
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return {"done_s": stall}

    def do_torch_save(self, path):
        torch.save(self.state, path)
        sync(path)

    def do_safetensors(self, path):
        from safetensors.torch import save_file

        save_file(self.state, path)
        sync(path)

    def do_dcp_save(self, path):
        dcp.save(self.state, storage_writer=self.writer(path))

    def do_async_default(self, path):
        """As the documentation calls it: nothing but where to."""
        return dcp.async_save(self.state, checkpoint_id=path)

    def stager(self, shared):
        if shared not in self.cached:
            self.cached[shared] = DefaultStager(StagingOptions(False, shared, False, False))
        return self.cached[shared]

    def do_async_private(self, path):
        """Staged into memory that is kept from one save to the next. (The writer's own cache_staged_state_dict pins memory: it needs a GPU.)"""
        return dcp.async_save(self.state, storage_writer=self.writer(path), async_stager=self.stager(False))

    def do_async_shared(self, path):
        return dcp.async_save(self.state, storage_writer=self.writer(path), async_stager=self.stager(True))

    def do_async_process(self, path):
        return dcp.async_save(self.state, storage_writer=self.writer(path), async_stager=self.stager(True),
                              async_checkpointer_type=AsyncCheckpointerType.PROCESS)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--table", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--directory", required=True)
    parser.add_argument("--bytes", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(a.threads)
    answers = os.fdopen(os.dup(1), "w")  # what libraries print goes to stderr
    os.dup2(2, 1)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    peer = Peer(a)

    def answer(what):
        print(json.dumps(what), file=answers, flush=True)

    answer({"bytes": peer.bytes, "tensors": len(peer.state), "torch": torch.__version__, "threads": torch.get_num_threads()})
    for line in sys.stdin:
        words = line.split()
        if words[0] == "save":
            answer(peer.save(words[1]))
        elif words[0] == "wait":
            answer(peer.wait())
            gc.collect()
        else:
            break
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
