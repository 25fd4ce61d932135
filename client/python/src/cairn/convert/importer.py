# SPDX-License-Identifier: Apache-2.0
"""Import: a source becomes a checkpoint of a job, saved by a world of ranks that live in this process one
after another.

    rank r      open, stage ── fill from the files ── seal ── durable ── close
    rank r + 1                                  open, stage ── fill ...

Two of them are open at a time. A rank's save is begun before the one before it is sealed: whatever happens to this process,
at every moment one save is unfinished, and the daemon aborts the checkpoint as soon as its connection ends.
"""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional

from ..errors import AbortedError, TimeoutError, TooLargeError
from ..session import Save, Session
from ..table import Table
from .errors import ConvertError
from .files import SourceFile
from .memory import view
from .pack import Piece, Share, pack
from .progress import Progress
from .source import Source
from .trees import RESERVED, TREE, flat_tree, tree_document

ARENA_BYTES = 256 << 20
_ROOM_S, _ROOM_PAUSE_S = 60.0, 0.1


@dataclass(frozen=True)
class Target:
    """Where an import goes. timeout: seconds, for each wait."""

    job: str
    step: Optional[int]
    socket: Optional[str]
    timeout: float
    arena_bytes: int = ARENA_BYTES
    quiet: bool = False


class _Rank:
    """One rank while it is open."""

    def __init__(self, target: Target, share: Share, rank: int, world: int, start_id: str, step: int) -> None:
        self.share = share
        self.session = Session(target.job, rank=rank, world_size=world, arena_bytes=share.arena_bytes, start_id=start_id,
                               socket=target.socket, timeout=min(target.timeout, 60.0))  # fmt: skip
        try:
            table = Table()
            for piece in share.pieces:
                table.add(piece.name, piece.dtype, piece.shape, 0, offset=piece.offset, length=piece.length)
            self.save: Save = self.session.stage(step, table)
        except BaseException:
            self.session.close()
            raise

    def fill(self, progress: Progress) -> None:
        """Brings every byte of the share to its place in the arena."""
        for i, piece in enumerate(self.share.pieces):
            if piece.nbytes:
                target = view(self.save.place(i), piece.nbytes)
                _read(piece, target)
                progress.add(piece.nbytes)

    def close(self) -> None:
        """Not sealed: gives the step up, and with it the checkpoint."""
        self.save.close()
        self.session.close()


def _read(piece: Piece, target: memoryview) -> None:
    if piece.item is None:
        target[:] = piece.data
    else:
        piece.item.reader.read(piece.start, piece.length, target)


def _documents(source: Source) -> Dict[str, bytes]:
    """The tree: the source's own, or a dict of its tensors by name."""
    if TREE + "0" in source.documents:
        return {TREE + "0": source.documents[TREE + "0"]}
    names = list(dict.fromkeys(item.name for item in source.items))
    reserved = next((name for name in names if name.startswith(RESERVED)), None)
    if reserved:
        raise ConvertError("unsupported", f'"{reserved}": names that begin with {RESERVED} are Cairn\'s own')
    return {TREE + "0": tree_document(flat_tree(names))}


def _hint(error: Exception, target: Target, world: int) -> ConvertError:
    if isinstance(error, TimeoutError):
        return ConvertError(
            "timeout",
            f"{error}: nothing was imported; see `cairn status` for what is slow, and allow more time with "
            "--timeout",
        )
    return ConvertError(
        "aborted",
        f"{error}: nothing was imported. An import of {world} ranks one after another must not stand still "
        "for [node] checkpoint_s: raise that in cairnd.conf, or give each rank less with --arena",
    )


class _World:
    """The ranks of one import, two of them open."""

    def __init__(self, source: Source, target: Target, shares: List[Share], step: int) -> None:
        self.source, self.target, self.shares, self.step = source, target, shares, step
        self.start_id = f"import-{uuid.uuid4().hex}"
        self.before: Optional[_Rank] = None  # sealed, on its way to the peers
        self.current: Optional[_Rank] = None
        self.following: Optional[_Rank] = None
        self.incarnation = 0

    def _open(self, rank: int) -> _Rank:
        """A rank's session, its save begun. The ranks before hold the daemon's memory until their last
        fragments have gone: that is waited for."""
        end = time.monotonic() + min(self.target.timeout, _ROOM_S)
        while True:
            try:
                return _Rank(self.target, self.shares[rank], rank, len(self.shares), self.start_id, self.step)
            except TooLargeError:
                if rank < 2 or time.monotonic() > end:
                    raise
                time.sleep(_ROOM_PAUSE_S)

    def _leave_before(self, state: str) -> None:
        if self.before:
            self.before.save.wait(state, self.target.timeout)
            self.before.close()
            self.before = None

    def run(self, progress: Progress) -> None:
        current = self.current = self._open(0)
        self.incarnation = current.session.incarnation
        for rank in range(1, len(self.shares)):
            current.fill(progress)
            self._leave_before("durable")
            self.following = self._open(rank)
            current.save.seal()
            self.before, current, self.following = current, self.following, None
            self.current = current
        current.fill(progress)
        self.source.finish()  # nothing is committed before the last rank is sealed
        current.save.seal()
        self.before, self.current = current, None
        self._leave_before("committed")

    def close(self) -> None:
        for rank in (self.current, self.following, self.before):
            if rank:
                rank.close()


def import_source(source: Source, target: Target) -> Dict[str, Any]:
    """Saves a source as a checkpoint, and waits until it is committed. What it was, as docs/json.md has it.

    Nothing is left of a checkpoint that could not be made whole. Errors: ConvertError, cairn.Error, OSError.
    """
    step = target.step if target.step is not None else source.step or 0
    shares = pack(source.items, _documents(source), target.arena_bytes)
    progress = Progress(sum(piece.nbytes for share in shares for piece in share.pieces), target.quiet)
    world = _World(source, target, shares, step)
    try:
        world.run(progress)
    except (AbortedError, TimeoutError) as error:
        raise _hint(error, target, len(shares)) from error
    finally:
        world.close()
        progress.close()
    return {"v": 1, "job": target.job, "step": step, "incarnation": world.incarnation, "world_size": len(shares),
            "tensors": len({item.name for item in source.items}), "bytes": source.nbytes}  # fmt: skip


# ---- which format ------------------------------------------------------------------------------------------


def _guess(path: str) -> str:
    if os.path.isdir(path):
        return "dcp" if os.path.exists(os.path.join(path, ".metadata")) else "safetensors"
    file = SourceFile(path)
    try:
        head = file.read(0, min(file.size, 262))
    finally:
        file.close()
    if head.startswith(b"PK\x03\x04") or head[:2] == b"\x80\x02" or head[257:262] == b"ustar":
        return "torch"
    return "safetensors"


def open_source(path: str, kind: str = "auto", checked: bool = True) -> Source:
    """Opens files of a format: "dcp", "torch", "safetensors", or what they look like. The caller closes the
    source.

    torch is imported only where the format needs it. Errors: as open_torch()'s.
    """
    if kind == "auto":
        kind = _guess(path)
    openers: Dict[str, Callable[[], Source]] = {
        "dcp": lambda: _from("from_dcp").open_dcp(path, checked),
        "torch": lambda: _from("from_torch").open_torch(path, checked),
        "safetensors": lambda: _from("from_safetensors").open_safetensors(path),
    }
    return openers[kind]()


def _from(module: str) -> Any:
    import importlib

    return importlib.import_module("." + module, __package__)
