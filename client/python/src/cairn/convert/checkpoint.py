# SPDX-License-Identifier: Apache-2.0
"""A checkpoint that is exported: its tensors by name, its state dicts, and its bytes piece by piece."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple

import torch

from .. import _torch, _tree
from .._lib import ITEM_SIZES
from ..session import Restore, Slice
from .boxes import Dims
from .dcp_documents import DCP, leaf_of, read_notes
from .errors import ConvertError
from .memory import address_of
from .progress import Progress
from .trees import RESERVED, TREE, Room, flat, merge, put


@dataclass
class Entry:
    """A tensor of the checkpoint, whole; slices as ranks saved it."""

    name: str
    dtype: str
    shape: Dims
    slices: List[Slice] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_SIZES[self.dtype]


class Checkpoint:
    """A restore with a table of what is in it. Not thread-safe."""

    def __init__(self, restore: Restore, timeout: float) -> None:
        self.restore, self.timeout = restore, timeout
        self.entries: Dict[str, Entry] = {}
        self.mixed: Dict[str, Slice] = {}  # names under which ranks saved different tensors
        for s in restore.slices():
            entry = self.entries.setdefault(s.name, Entry(s.name, s.dtype, s.shape))
            if (entry.dtype, entry.shape) != (s.dtype, s.shape):
                self.mixed.setdefault(s.name, s)
            entry.slices.append(s)

    def entry(self, name: str) -> Entry:
        """Errors: ConvertError when no rank saved it, or ranks saved different tensors under the name."""
        if name in self.mixed:
            raise ConvertError(
                "exists",
                f'ranks saved different tensors as "{name}": restore one rank (--rank N), or '
                "safetensors without --merge",
            )
        if name not in self.entries:
            raise ConvertError("corrupt", f'the checkpoint speaks of a tensor "{name}" that no rank saved')
        return self.entries[name]

    def read(self, name: str) -> bytearray:
        """All bytes of a document. Errors: cairn.Error."""
        entry = self.entries[name]
        data = bytearray(entry.nbytes)
        if data:
            self.restore.add(name, entry.dtype, entry.shape, address_of(data), keep=data)
            self.restore.run(self.timeout)
        return data

    def _tree(self, rank: Optional[int]) -> Any:
        name = f"{TREE}{rank}"
        return _tree.read(self.read(name), name) if name in self.entries else None

    def _dcp_state(self) -> Any:
        """Of a checkpoint that DCP saved; None when it is none."""
        documents = {n: bytes(self.read(n)) for n in self.entries if n.startswith(DCP)}
        if not documents:
            return None
        notes = read_notes(documents)
        state: Dict[Any, Any] = {}
        room = Room(len(self.entries))
        for name in self.entries:
            if not name.startswith(RESERVED):
                leaf = leaf_of(name, notes, bytes(self.read(name)) if name in notes.streams else b"")
                put(state, notes.paths.get(name, (name,)), leaf, name, room)
        return state

    @property
    def ranks(self) -> List[Optional[int]]:
        """Whose state dicts are in it: all that have a tree, or, where nobody has, all that saved something.
        [None] when it is one state of all ranks, as DCP saves."""
        if any(name.startswith(DCP) for name in self.entries):
            return [None]
        world = range(self.restore.world_size)
        return [r for r in world if f"{TREE}{r}" in self.entries] or list(world)

    def state(self, rank: Optional[int]) -> Any:
        """The state dict of a rank, or of all (None): with TensorRefs, and Streams where DCP saved it.
        Without a tree every tensor by its name."""
        saved_by_dcp = self._dcp_state()
        if saved_by_dcp is not None:
            return saved_by_dcp
        trees = [t for t in map(self._tree, self.ranks if rank is None else [rank]) if t is not None]
        if not trees:
            names = [
                n for n, e in self.entries.items() if rank is None or any(s.rank == rank for s in e.slices)
            ]
            return flat(names)
        merged = trees[0]
        for tree in trees[1:]:
            merged = merge(merged, tree)
        return merged


def tensor_kind(entry: Entry, ref: _tree.TensorRef) -> Tuple[torch.dtype, Dims]:
    """torch's dtype and shape of what a tree refers to. Errors: ConvertError where this torch has no such
    dtype."""
    true = ref.dtype if ref.tag == "tensor" else None
    dtype = _torch.dtype_of(true or entry.dtype)
    if dtype is None:
        raise ConvertError(
            "unsupported",
            f'"{entry.name}": this torch ({torch.__version__}) has no dtype {true or entry.dtype}',
        )
    if true is None or entry.dtype != "BYTES":
        return dtype, entry.shape
    if not entry.shape or entry.shape[-1] != dtype.itemsize:
        raise ConvertError("corrupt", f'"{entry.name}": {list(entry.shape)} bytes are no {true}')
    return dtype, entry.shape[:-1]


class Pump:
    """Reads pieces of tensors in batches into one buffer, and hands the buffer's parts on.

    add() notes a piece; what was added is delivered, in order, at the latest by flush(): deliver(bytes).
    """

    def __init__(self, checkpoint: Checkpoint, window: int, progress: Progress) -> None:
        self._checkpoint, self._window, self._progress = checkpoint, window, progress
        self._buffer = bytearray(window)
        self._at = 0
        self._waiting: List[Tuple[memoryview, Any]] = []

    def _room(self, nbytes: int) -> Tuple[memoryview, int]:
        if nbytes > len(self._buffer):  # one element or document that is larger
            self.flush()
            self._buffer = bytearray(nbytes)
        if self._at + nbytes > len(self._buffer):
            self.flush()
        at = self._at
        self._at += -(-nbytes // 64) * 64
        return memoryview(self._buffer)[at : at + nbytes], (
            address_of(memoryview(self._buffer)[at:]) if nbytes else 0
        )

    def add(self, entry: Entry, start: Dims, length: Dims, deliver: Any) -> None:
        """A box of a tensor."""
        nbytes = math.prod(length) * ITEM_SIZES[entry.dtype]
        target, address = self._room(nbytes)
        if nbytes:
            self._checkpoint.restore.add(
                entry.name, entry.dtype, entry.shape, address, offset=start, length=length, keep=self._buffer
            )
        self._waiting.append((target, deliver))

    def add_slice(self, piece: Slice, deliver: Any) -> None:
        """Exactly what a rank saved, whole."""
        target, address = self._room(piece.bytes)
        if piece.bytes:
            self._checkpoint.restore.add_slice(piece.index, address, keep=self._buffer)
        self._waiting.append((target, deliver))

    def flush(self) -> None:
        if any(len(target) for target, _ in self._waiting):
            self._checkpoint.restore.run(self._checkpoint.timeout)
        waiting, self._waiting, self._at = self._waiting, [], 0
        for target, deliver in waiting:
            deliver(target)
            self._progress.add(len(target))
