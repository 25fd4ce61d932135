# SPDX-License-Identifier: Apache-2.0
"""What the tests of PyTorch know as FileSystemWriter and FileSystemReader: cairn.torch's classes, with directories as ids.

A directory is a job, since each test makes its own. What is written to it again takes a new step, as a file would be
overwritten; a file in the directory says which was the last.
"""
import dataclasses
import hashlib
import os
import pathlib
import time

import cairn.torch

STEP = "cairn_step"
LAST = ".cairn_step"


def job_of(path):
    return "pytorch-" + hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()[:24]


class FileSystemWriter(cairn.torch.StorageWriter):
    def __init__(self, path, *_, **__):
        super().__init__(job_of(path), timeout=60.0)
        self.path = pathlib.Path(path)

    @property
    def checkpoint_id(self):
        return str(self.path)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id):
        return isinstance(checkpoint_id, (str, os.PathLike)) and "://" not in str(checkpoint_id)

    def reset(self, checkpoint_id=None):
        super().reset(None)
        if checkpoint_id:
            self.path, self.job = pathlib.Path(checkpoint_id), job_of(checkpoint_id)

    def prepare_global_plan(self, plans):
        step = time.time_ns()
        return [dataclasses.replace(p, storage_data={**p.storage_data, STEP: step}) for p in super().prepare_global_plan(plans)]

    def write_data(self, plan, planner):
        self.step = plan.storage_data[STEP]
        return super().write_data(plan, planner)

    def finish(self, metadata, results):
        super().finish(metadata, results)
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / LAST).write_text(str(self.step))


class FileSystemReader(cairn.torch.StorageReader):
    """allow_pickle: PyTorch's tests save objects of their own classes."""

    def __init__(self, path, *_, **__):
        super().__init__(job_of(path), timeout=60.0, allow_pickle=True)
        self.path = pathlib.Path(path)

    checkpoint_id = FileSystemWriter.checkpoint_id
    validate_checkpoint_id = FileSystemWriter.validate_checkpoint_id

    def reset(self, checkpoint_id=None):
        super().reset(None)
        if checkpoint_id:
            self.path, self.job = pathlib.Path(checkpoint_id), job_of(checkpoint_id)

    def read_metadata(self):
        self.step = int((self.path / LAST).read_text())
        return super().read_metadata()
