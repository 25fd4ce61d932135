# SPDX-License-Identifier: Apache-2.0
"""Cairn as a storage back end of torch.distributed.checkpoint (docs/python-dcp.md).

    import torch.distributed.checkpoint as dcp
    from cairn.torch import StorageReader, StorageWriter

    dcp.save(state, checkpoint_id=step, storage_writer=StorageWriter("my-run"))
    dcp.load(state, checkpoint_id=step, storage_reader=StorageReader("my-run"))

and, without a copy in between, for dcp.async_save:

    writer = StagingWriter("my-run")
    dcp.async_save(state, checkpoint_id=step, storage_writer=writer.at(step))
"""
from __future__ import annotations

from ._sessions import close_sessions
from .reader import StorageReader
from .stager import AsyncStager, StagingWriter
from .writer import StorageWriter

__all__ = ["AsyncStager", "StagingWriter", "StorageReader", "StorageWriter", "close_sessions"]
