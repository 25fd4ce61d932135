# SPDX-License-Identifier: Apache-2.0
"""From a state dict to a table for libcairn, and again for the next save of a state dict that is built the
same way.

first save   walk, names, slices, tree document -> Table        tens of microseconds a tensor
later saves  Layout.refresh(): same keys, dtypes, shapes and strides? then only addresses are set
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Optional, Union

from . import _lib, _tree
from .table import Table

Replicated = Union[bool, Callable[[str], bool]]
Volatile = Callable[[_tree.Key, Any], bool]  # of a tensor at a path of the state dict

_MIB = 1 << 20
_ALIGN = 64  # CAIRN_TENSOR_ALIGN
_DOCUMENT_STEP = 4096
_MOST_WATCHED = 4  # objects that are built otherwise each time are no longer looked at
_SHARE_ROWS_BYTES = 1 << 16  # replicated tensors below this are stored whole by one rank


def leaf_tag(kind: type) -> Optional[str]:
    """ "tensor" or "ndarray" for the type of a value with bytes of its own, else None."""
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch and issubclass(kind, torch.Tensor):
        return "tensor"
    return "ndarray" if numpy and kind in (numpy.ndarray, numpy.memmap) else None


def arrays_of(value: Any) -> Any:
    """The module that knows this kind of array: _torch or _numpy."""
    if leaf_tag(type(value)) == "tensor":
        from . import _torch as module
    else:
        from . import _numpy as module  # type: ignore[no-redef]
    return module


def _true_dtype(value: Any, path: _tree.Key) -> Optional[str]:
    module = arrays_of(value)
    if module.__name__.endswith("_numpy"):
        return module.true_name(value, _tree.show(path))
    return module.true_name(value.dtype)


def _holds(rule: Replicated, name: str) -> bool:
    return bool(rule(name) if callable(rule) else rule)


def _identity(value: Any) -> Any:
    return arrays_of(value).identity(value)


def tree_name(rank: int) -> str:
    """Under which a rank's tree document is stored."""
    return f".cairn/tree/{rank}"


class Layout:
    """A state dict's tensors as a table, with the tree document as its last slice.

    rank, world_size: of the saving job; replicated: what plain tensors all ranks hold alike (see
    Checkpointer). before: the layout of the save before, whose room for the document is kept. direct:
    libcairn reads devices itself; volatile: which of their tensors forward and backward change; common: as
    replicated, of plain tensors that each rank stores whole. After the
    constructor and after each refresh() the table is ready to be saved, as long as the state's tensors and
    what `held` keeps live. devices: those that the table's memory is on. Not thread-safe.
    """

    def __init__(
        self,
        state: Any,
        rank: int = 0,
        world_size: int = 1,
        replicated: Replicated = False,
        pickle_allowed: bool = False,
        before: Optional["Layout"] = None,
        direct: bool = False,
        volatile: Optional[Volatile] = None,
        common: Replicated = False,
    ) -> None:
        self.table = Table()
        self.tree = _tree.Tree(state, leaf_tag, _identity, _true_dtype, pickle_allowed)
        self.held: list[Any] = []  # copies that the addresses point to
        self.device_rows: list[tuple[int, int, int]] = []  # row, leaf, piece: to be copied after a stage
        self.devices: list[int] = []
        self.volatile_bytes = 0
        self.mode: Any = None  # the caller's: what else the layout depends on
        self._direct, self._volatile = direct, volatile
        self._on_devices: list[int] = []  # leaves that devices are to copy
        self._share, self._common = (rank, world_size, replicated), common
        self._rows: list[tuple[int, int]] = []  # leaf, bytes behind the leaf's own address
        self._bytes: dict[str, int] = {}
        values, self.tree.values = self.tree.values, []
        self.values = values
        self._torch = [i for i, leaf in enumerate(self.tree.leaves) if leaf.tag == "tensor"]
        self._numpy = [i for i, leaf in enumerate(self.tree.leaves) if leaf.tag == "ndarray"]
        self._refreshable = True
        self._promise: Any = None  # see _promise
        self._watched = 0  # times that objects were looked at
        # Tensors of the host, such as the steps of optimizers, lie behind those of devices: a part of the image
        # that has both is not a device's alone, which could leave it out if it is as it was.
        pieces = [p for i, value in enumerate(values) for p in self._pieces_with_place(i, value)]
        for number, i, piece, base, common in sorted(pieces, key=lambda p: p[2].device == _lib.HOST):
            self._add_piece(number, i, piece, base, common)
        self._in_place = self._rows == [(i, 0) for i in range(len(values))] and not self._numpy
        self._note_signature(values)
        self._add_document(rank, before)

    @property
    def arena_bytes(self) -> int:
        """Room that one save of this layout takes in the arena: whole MiB for each dtype."""
        return sum(-(-n // _MIB) * _MIB for n in self._bytes.values())

    # ---- the first time ----

    def _pieces_with_place(self, number: int, value: Any) -> Iterator[tuple[int, int, Any, int, bool]]:
        """What this rank stores of a leaf, as _add_piece() wants it."""
        if self.tree.leaves[number].same_as is not None:
            return
        module = arrays_of(value)
        self._refreshable = self._refreshable and module.has_one_place(value)
        base = module.base_of(value, self._direct) if self._refreshable else 0
        common = self._is_common(self.tree.leaves[number].name, value)
        for i, piece in enumerate(self._pieces(number, value)):
            yield number, i, piece, base, common

    def _pieces(self, number: int, value: Any) -> list[Any]:
        """What this rank stores of a leaf."""
        leaf, module = self.tree.leaves[number], arrays_of(value)
        if not module.stores(value, leaf.name):
            return []
        pieces = module.pieces_of(value, _tree.show(leaf.path), self._direct)
        return pieces if module.is_distributed(value) else self._my_share(leaf.name, pieces[0])

    def _add_piece(self, number: int, i: int, piece: Any, base: int, common: bool) -> None:
        leaf = self.tree.leaves[number]
        on_device = piece.device != _lib.HOST
        volatile = on_device and self._volatile is not None and self._volatile(leaf.path, piece.local)
        row = self.table.add(
            leaf.name,
            piece.dtype,
            piece.shape,
            piece.address,
            offset=piece.offset,
            length=piece.length,
            strides=piece.strides,
            device=piece.device,
            volatile=volatile,
            common=common,
        )
        if on_device:
            self._on_devices += [number] if self._on_devices[-1:] != [number] else []
            self.devices += [piece.device] if piece.device not in self.devices else []
        if not piece.address and piece.local is not None and 0 not in piece.length:
            self.device_rows.append((row, number, i))
        if volatile:
            self.volatile_bytes += piece.local.numel() * piece.local.element_size()
        self.held.append(piece.local)
        self._rows.append((number, piece.address - base if piece.address else 0))
        self._count(piece.dtype, piece.length)

    def _is_common(self, name: str, value: Any) -> bool:
        """Of what every rank stores whole: a share is nobody else's, and of a DTensor's replicas one is
        stored."""
        _, world_size, replicated = self._share
        if world_size == 1 or _holds(replicated, name) or arrays_of(value).is_distributed(value):
            return False
        return _holds(self._common, name)

    def _count(self, dtype: str, length: Sequence[int]) -> None:
        size = _lib.ITEM_SIZES[dtype]
        for n in length:
            size *= n
        self._bytes[dtype] = -(-self._bytes.get(dtype, 0) // _ALIGN) * _ALIGN + size

    def _my_share(self, name: str, piece: Any) -> list[Any]:
        """What this rank stores of a tensor that all ranks hold: rows of a large one, a small one whole or
        not at all. All ranks come to the same division without a word, since they hold the same."""
        rank, world_size, replicated = self._share
        if world_size == 1 or not _holds(replicated, name):
            return [piece]
        row = _lib.ITEM_SIZES[piece.dtype]
        for n in piece.shape[1:]:
            row *= n
        rows = piece.shape[0] if piece.shape else 0
        if rows < world_size or row * rows < _SHARE_ROWS_BYTES:
            mine = zlib.crc32(name.encode("utf-8", "surrogatepass")) % world_size == rank
            return [piece] if mine else []
        first, end = rows * rank // world_size, rows * (rank + 1) // world_size
        stride = row if piece.strides is None else piece.strides[0]
        address = piece.address + first * stride if piece.address else 0
        local = piece.local[first:end] if not piece.address else piece.local
        return [
            piece._replace(
                offset=(first, *piece.offset[1:]),
                length=(end - first, *piece.length[1:]),
                address=address,
                local=local,
            )
        ]

    def _add_document(self, rank: int, before: Optional["Layout"]) -> None:
        text = self.tree.text.encode("ascii")
        room = -(-(len(text) * 5 // 4 + 1024) // _DOCUMENT_STEP) * _DOCUMENT_STEP
        self._room: int = max(room, before._room if before else 0)
        self._document = bytearray(self._room)
        self._view = memoryview(self._document)
        self._write_document(text)
        self._document_at = _lib.address_of(self._document)
        self.table.add(tree_name(rank), "BYTES", (self._room,), self._document_at)
        self._count("BYTES", (self._room,))

    def _write_document(self, text: bytes) -> None:
        self._view[: len(text)] = text
        self._view[len(text) :] = b" " * (self._room - len(text))

    # ---- later ----

    def _note_signature(self, values: list[Any]) -> None:
        self._same = [
            (i, leaf.same_as) for i, leaf in enumerate(self.tree.leaves) if leaf.same_as is not None
        ]
        self._arrays = self._arrays_in(values)
        self._tensors = None
        if self._torch and self._refreshable:
            from . import _torch

            self._tensors = _torch.Signature([values[i] for i in self._torch])

    def _arrays_in(self, values: list[Any]) -> list[tuple[Any, ...]]:
        return [(values[i].dtype.str, values[i].shape, values[i].strides) for i in self._numpy]

    def _addresses_of(self, values: list[Any]) -> Optional[list[int]]:
        """Where the leaves lie now; None if the table does not fit them."""
        tensors: Optional[list[int]] = []
        if self._tensors:
            tensors = self._tensors.addresses([values[i] for i in self._torch] if self._numpy else values)
        if tensors is None or self._arrays_in(values) != self._arrays:
            return None
        if not self._numpy:
            return tensors
        at = dict(zip(self._torch, tensors))
        at.update((i, arrays_of(values[i]).address_of(values[i])) for i in self._numpy)
        return [at[i] for i in range(len(values))]

    def watch(self, state: dict[Any, Any], objects: dict[Any, Any]) -> None:
        """Lets refresh() take these objects in the places of their state dicts in the state, as far as that
        can be done."""
        if (
            not objects
            or not self._refreshable
            or self._watched == _MOST_WATCHED
            or "torch" not in sys.modules
        ):
            return
        from . import _live

        new = {k: v for k, v in objects.items() if _live.is_live(v) and not self.is_watched(k, v)}
        self._watched += bool(new)
        for key, value in new.items():
            live = _live.live(value, state[key])
            if live:
                self.tree.watch(state, key, live)

    def is_watched(self, key: Any, value: Any) -> bool:
        """Whether refresh() takes this object itself."""
        return self._watched > 0 and self.tree.is_watched(key, value)

    def refresh(self, state: Any) -> bool:
        """Makes the table fit a later state dict. False: it is built otherwise, a new Layout is needed; the
        table is not to be used any more."""
        if not self._refreshable:
            return False
        values = self.tree.refresh(state)
        if values is None or len(self.tree.text) > self._room:
            return False
        try:
            at = self._addresses_of(values)
        except RuntimeError:  # a tensor that has no strides or no address any more
            return False
        if at is None or any(at[i] != at[j] for i, j in self._same):
            return False
        self.values = values
        addresses = at if self._in_place else [at[i] + more for i, more in self._rows]
        for row, _, _ in self.device_rows:
            addresses[row] = 0
        addresses.append(self._document_at)
        self.table.set_addresses(addresses)
        self._write_document(self.tree.text.encode("ascii"))
        return True

    # ---- what stays as it is built ----

    @property
    def is_promised(self) -> bool:
        return self._promise is not None

    def is_promise_about(self, state: Any) -> bool:
        """Whether this very dict stays as it is, and not only what is at its top."""
        return self._promise is not None and self._promise.is_about(state)

    def promise(self, state: Any, made: Collection[Any] = ()) -> bool:
        """From now on repeat() can be had for this state, which refresh() has just taken. made: keys of what
        is made anew for each save. False: it cannot."""
        self._promise = None
        fixed = self.tree.fix(state, made) if self._refreshable and not self.device_rows else None
        if fixed is None or fixed.leaves != len(self.values) or not fixed.numbers:
            return False
        from . import _promise

        try:
            promise = _promise.Promise(self, state, fixed)
            self._promise = promise if promise.repeat(self, state) else None
        except (RuntimeError, _promise.BrokenError):  # memory that nobody can hold; hooks that replace tensors
            pass
        return self.is_promised

    def repeat(self, state: Any) -> Optional[str]:
        """As refresh(), without a look at each tensor. None: done; else why the promise does not stand any
        more, "" where only this table does not fit; refresh() is to be asked then."""
        from . import _promise

        promise, self._promise = self._promise, None
        try:
            if not promise.repeat(self, state):
                return ""
        except _promise.BrokenError as e:
            return f"{e} (looked at every {promise.saves} saves: those since may have what was before)"
        self._promise = promise
        return None

    @property
    def document(self) -> memoryview:
        """Where the tree document is."""
        return self._view

    def rows(self) -> Iterable[tuple[int, tuple[int, int]]]:
        """Of each row of the table: leaf, and bytes behind the leaf's own address."""
        return enumerate(self._rows)

    def addresses(self) -> list[int]:
        """Where the leaves lie now."""
        return self._addresses_of(self.values) or []

    def ties(self) -> list[tuple[int, int]]:
        """Leaves that are one tensor."""
        return self._same

    def forget(self) -> None:
        """After a save: the state's memory is not held any more."""
        self.values, self.held = [], []

    def memory_on_devices(self) -> list[Any]:
        """Owners of what devices are still to copy when the save has begun."""
        if not self.devices:
            return []
        from . import _torch

        if self._promise is not None:
            return self._promise.memory_on_devices(self)
        if self.held:  # of the first save: also copies that had to be made
            return _torch.memory_of(list(filter(_torch.is_on_device, self.held)))
        whole = len(self._on_devices) == len(self.values)
        return _torch.memory_of(self.values if whole else [self.values[i] for i in self._on_devices])

    def device_pieces(self) -> list[tuple[int, Any]]:
        """Rows that the processor cannot read, each with the tensor to copy to its place."""
        return [(row, self._pieces(leaf, self.values[leaf])[i].local) for row, leaf, i in self.device_rows]
