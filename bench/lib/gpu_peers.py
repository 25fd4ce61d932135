# SPDX-License-Identifier: Apache-2.0
"""The same state by what people use today: torch.save, and dcp.async_save with pinned staging. Files are removed as soon as they are complete."""
import gc
import os
import pathlib
import shutil

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from gpu_device import Link
from gpu_state import Step, label, make, size
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

GROUP = "peers"


class Dcp:
    """pinned: FileSystemWriter(cache_staged_state_dict=True), which stages before async_save returns, into pinned memory that is kept. async: the
    DefaultStager with all that it has, which stages in the background; the first writer waits for it."""

    def __init__(self, w, mode):
        self.directory, self.mode, self.n = pathlib.Path(w.directory) / "dcp", mode, 0
        self.cuda = w.device == "cuda"
        self.threads = max(1, (os.cpu_count() or 2) // 2)
        self.stager = None
        if mode == "async":
            self.stager = DefaultStager(StagingOptions(use_pinned_memory=self.cuda, use_shared_memory=False, use_async_staging=True,
                                                       use_non_blocking_copy=self.cuda))
        self.writer, self.path, self.response = None, None, None

    def save(self, state):
        self.n += 1
        self.path = self.directory / f"{self.mode}-{self.n}"
        if self.mode == "async":
            writer = dcp.FileSystemWriter(self.path, thread_count=self.threads, sync_files=False)
            self.response = dcp.async_save(state, storage_writer=writer, async_stager=self.stager)
            return
        if self.writer is None:
            self.writer = dcp.FileSystemWriter(self.path, thread_count=self.threads, sync_files=False, cache_staged_state_dict=self.cuda)
        self.response = dcp.async_save(state, storage_writer=self.writer, checkpoint_id=self.path)

    def staged(self):
        if hasattr(self.response, "staging_completion"):
            self.response.staging_completion.result()

    def done(self):
        getattr(self.response, "upload_completion", self.response).result()
        shutil.rmtree(self.path, ignore_errors=True)

    def close(self):
        if self.stager:
            self.stager.close()


def torch_save(state, path):
    try:
        torch.save(state, path)
    finally:
        if os.path.exists(path):
            os.unlink(path)


def by_dcp(w, state, step, mode):
    """Blocked seconds of saves after one that takes the memory."""
    by = Dcp(w, mode)
    blocked = []
    try:
        for i in w.turns(1 + max(1, w.reps // 2), least=2):
            seconds = step.blocked(lambda: by.save(state), by.staged)
            by.done()
            if i:
                blocked.append(seconds)
    finally:
        by.close()
    return blocked


def run_peers(w):
    w.ask("stop")  # the memory is wanted
    os.makedirs(w.directory, exist_ok=True)
    state = make(w, w.bytes, w.tensor_bytes)
    tag, total = label(w), size(state)
    link = Link(w.on, min(w.link_bytes, total))
    step = Step(w, state, total / link.to_host() / 0.8)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    for mode in ("pinned", "async"):
        name = f"blocked_dcp_{mode}_{tag}"
        if mode == "async" and (w.left() < w.seconds / 3 or total > 16 << 30):
            w.missing(name, "s", "there was no time or no memory", group=GROUP)
            continue
        try:
            blocked = by_dcp(w, state, step, mode)
            w.add(name, "s", blocked, group=GROUP, note="dcp.async_save, memory kept from save to save")
            w.value(**{name: sorted(blocked)[len(blocked) // 2]})
            gc.collect()
            w.on.free()
        except Exception as e:  # noqa: BLE001 - the other peers are measured all the same
            w.missing(name, "s", f"{type(e).__name__}: {e}"[:300], group=GROUP)
    for where, directory in (("disk", w.directory), ("shm", "/dev/shm")):
        name = f"blocked_torch_save_{where}_{tag}"
        free = shutil.disk_usage(directory).free
        if w.left() < 10 and w.device == "cuda" or free < total * 1.2 or (where == "shm" and total > 8 << 30):
            w.missing(name, "s", "there was no time or no room", group=GROUP)
            continue
        path = os.path.join(directory, f"cairn-bench-{os.getpid()}.pt")
        w.add(name, "s", [step.blocked(lambda: torch_save(state, path))], group=GROUP, note="not synced")
    dist.destroy_process_group()
