# SPDX-License-Identifier: Apache-2.0
"""Export: a checkpoint becomes files of torch's own formats."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Tuple

from ..session import Session
from .checkpoint import Checkpoint
from .errors import ConvertError
from .to_dcp import write_dcp
from .to_torch import write_torch
from .trees import only, strip


@dataclass(frozen=True)
class Wish:
    """What is exported, and where to. timeout: seconds, for each read."""

    job: str
    step: Optional[int]
    to: str
    format: str  # "torch" or "dcp"
    merge: bool = False
    rank: Optional[int] = None
    only: Optional[str] = None
    strip: Optional[str] = None
    force: bool = False
    socket: Optional[str] = None
    timeout: float = 3600.0
    quiet: bool = False


def _state(checkpoint: Checkpoint, wish: Wish, rank: Optional[int]) -> Any:
    state = checkpoint.state(rank)
    if wish.only:
        state = only(state, wish.only)
    return strip(state, wish.strip or "")


def _ranks(checkpoint: Checkpoint, wish: Wish) -> List[Optional[int]]:
    """Whose files are written; None: one of all."""
    if wish.merge or wish.rank is None:
        return [None] if wish.merge else checkpoint.ranks
    if wish.rank not in checkpoint.ranks:
        have = ", ".join(str(r) for r in checkpoint.ranks if r is not None) or "all of them together"
        raise ConvertError(
            "not_found", f"there is no state of rank {wish.rank}: the checkpoint has one of {have} (--merge)"
        )
    return [wish.rank]


def _torch_files(checkpoint: Checkpoint, wish: Wish) -> List[Tuple[str, int]]:
    written = []
    for rank in _ranks(checkpoint, wish):
        path = os.path.join(wish.to, "model.pt" if rank is None else f"rank-{rank:05}.pt")
        size = write_torch(checkpoint, _state(checkpoint, wish, rank), path, rank, wish.force, wish.quiet)
        written.append((path, size))
    return written


def export(wish: Wish) -> Dict[str, Any]:
    """Writes the files. What was written, as docs/json.md has it. Errors: ConvertError, cairn.Error,
    OSError."""
    if wish.format == "dcp" and wish.rank is not None:
        raise ConvertError("inval", "--rank: a DCP checkpoint is of all ranks")
    os.makedirs(wish.to, exist_ok=True)
    with Session(wish.job, observer=True, socket=wish.socket, timeout=min(wish.timeout, 60.0)) as session:
        with session.restore(wish.step, wish.timeout) as restore:
            checkpoint = Checkpoint(restore, wish.timeout)
            if wish.format == "dcp":
                files = write_dcp(checkpoint, _state(checkpoint, wish, None), wish.to, wish.force, wish.quiet)
            else:
                files = _torch_files(checkpoint, wish)
            return {"v": 1, "job": wish.job, "step": restore.step, "incarnation": restore.incarnation,
                    "files": [{"path": path, "bytes": size} for path, size in files]}  # fmt: skip
