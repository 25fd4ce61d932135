# SPDX-License-Identifier: Apache-2.0
"""Cairn: checkpoints that training does not wait for.

    ckpt = cairn.Checkpointer("llm")
    start = ckpt.load(state) or 0
    ckpt.save(step, state)

Importing this package imports neither torch nor libcairn; both are loaded when something needs them.
"""
from __future__ import annotations

from ._lib import cuda
from .checkpointer import Checkpointer, SaveFailedWarning, SaveHandle, read
from .errors import (
    AbortedError, BusyError, CorruptError, DeniedError, Error, ExistsError, FencedError, ForkedError, InterruptedError,
    InvalidError, NoSpaceError, NotFoundError, OutOfMemoryError, ProtocolError, StalePinError, StorageError, TimeoutError,
    TooLargeError, UnavailableError, UnsupportedError,
)
from .session import Restore, Save, Session, Slice
from .table import Table

__all__ = [
    "AbortedError", "BusyError", "Checkpointer", "CorruptError", "DeniedError", "Error", "ExistsError", "FencedError",
    "ForkedError", "InterruptedError", "InvalidError", "NoSpaceError", "NotFoundError", "OutOfMemoryError", "ProtocolError",
    "Restore", "Save", "SaveFailedWarning", "SaveHandle", "Session", "Slice", "StalePinError", "StorageError", "Table",
    "TimeoutError", "TooLargeError", "UnavailableError", "UnsupportedError", "cuda", "read",
]
