# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint to a state dict: into the tensors that somebody gave, or into new ones."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Optional

from . import _lib, _merge, _tree
from ._layout import arrays_of, tree_name
from ._merge import Merge, Rename, Wanted
from .errors import CorruptError, InvalidError
from .session import Restore

_LOG = logging.getLogger("cairn")
_NAMES_SHOWN = 20


class Loader:
    """Reads one opened checkpoint for one rank. what: "step 7 of job x", for messages; timeout: for each run,
    seconds.

    observer: the session has no rank, so that of what several ranks saved under one name libcairn takes the
    lowest rank's; whole tensors of the wanted rank are then asked for one by one. reach: whether libcairn
    writes a device's memory itself.
    """

    def __init__(
        self,
        restore: Restore,
        rank: int,
        what: str,
        allow_pickle: bool,
        timeout: float,
        observer: bool = False,
        reach: Callable[[int], bool] = lambda device: False,
    ) -> None:
        self._own = (
            {s.name: s for s in restore.slices() if s.rank == rank and s.length == s.shape}
            if observer
            else {}
        )
        self._restore, self._rank, self._what = restore, rank, what
        self._allow_pickle, self._timeout = allow_pickle, timeout
        self._reach, self._devices = reach, set[int]()
        self._after: list[Callable[[], None]] = []  # copies to where Cairn cannot write
        self._seen: dict[Any, Wanted] = {}  # by the memory that is being read into
        self._untied: list[tuple[Wanted, Wanted]] = []  # one tensor in the state, two in the checkpoint

    def _find(self, name: str) -> Optional[tuple[str, tuple[int, ...]]]:
        """dtype and shape of what will be read under a name: ranks may have saved it in different ones."""
        own = self._own.get(name)
        return (own.dtype, own.shape) if own else self._restore.find(name)

    def fill(self, state: dict[Any, Any], strict: bool, rename: Rename) -> None:
        """Fills the tensors of the state in place, then puts the other values into its containers. Nothing is
        touched before everything fits; after a failed read the tensors' contents are undefined, and no other
        value has changed.
        """
        merge = Merge(self._tree(), rename, lambda name: self._find(name) is not None)
        merge.run(state)
        self._complain(merge, strict)
        self._read(merge.wanted)
        for put in merge.puts:
            put()

    def make(self) -> Any:
        """The state dict as it was saved, with tensors of its own on the processor. Of several ranks' it is
        this rank's, its tensors in full."""
        wanted: list[Wanted] = []
        built = _merge.build(self._tree(), (), wanted)
        self._read(wanted)
        return built.get()

    # ---- the tree ----

    def _tree(self) -> Any:
        """This rank's tree; the first rank's, where this one saved none; names only, where nobody saved one
        (a program in C)."""
        for rank in (self._rank, 0):
            name = tree_name(rank)
            found = self._restore.find(name)
            if found is not None:
                return self._read_tree(name, *found)
        names = dict.fromkeys(s.name for s in self._restore.slices())
        return {
            name: _tree.TensorRef(name, "tensor", None) for name in names if not name.startswith(".cairn/")
        }

    def _read_tree(self, name: str, dtype: str, shape: tuple[int, ...]) -> Any:
        if dtype != "BYTES" or len(shape) != 1:
            raise CorruptError(f'{self._what}: "{name}" is {dtype} {list(shape)} and no document')
        data = bytearray(shape[0])
        if data:
            self._restore.add(name, dtype, shape, _lib.address_of(data), keep=data)
            self._restore.run(self._timeout)
        tree = _tree.read(data, f'{self._what}, "{name}"', self._allow_pickle)
        if not isinstance(tree, dict):
            raise CorruptError(f'{self._what}: "{name}" is a {type(tree).__name__} and no state dict')
        return tree

    # ---- what does not fit ----

    def _complain(self, merge: Merge, strict: bool) -> None:
        problems = [*merge.other_kind, *self._mismatches(merge.wanted)]
        said = [_listed(problems, "of another kind")] if problems else []
        if strict and merge.missing:
            said.append(_listed(merge.missing, "in the state and not in the checkpoint"))
        extra = merge.extra() if strict else []
        if extra:
            said.append(_listed(extra, "in the checkpoint and not in the state"))
        if said:
            hint = (
                ""
                if problems
                else " (strict=False leaves them as they are; rename= says what is called otherwise)"
            )
            raise InvalidError(f"load {self._what}: {'; '.join(said)}{hint}")

    def _mismatches(self, wanted: list[Wanted]) -> list[str]:
        found = []
        for w in wanted:
            there = self._find(w.ref.name)
            name = _tree.name_of(w.path)
            if there is None:
                raise CorruptError(f'{self._what}: its tree names tensor "{w.ref.name}", which nobody saved')
            if w.value is None:
                continue
            here = _described(w.value)
            there_said = _said(there[0], there[1], w.ref.dtype)
            if here != there_said:
                found.append(f"{name} is {here} in the state and {there_said} in the checkpoint")
        return found

    # ---- tensors ----

    def _read(self, wanted: list[Wanted]) -> None:
        for w in wanted:
            if w.value is None:
                w.value = self._new(w)
            self._want(w)
            if w.put:
                w.put(w.value)
        if self._devices:
            from . import _cuda

            _cuda.synchronize(self._devices)  # what still reads or writes the targets
        self._restore.run(self._timeout)
        for copy in self._after:
            copy()
        for tied, own in self._untied:
            self._untie(tied, own)

    def _untie(self, tied: Wanted, own: Wanted) -> None:
        """Two tensors of the checkpoint that are one in the state stay one only if they are equal."""
        if own.instead is None or arrays_of(own.value).is_same(tied.value, own.value):
            return
        own.instead(own.value)
        _LOG.warning(
            "load %s: %s and %s are one tensor in the state and differ in the checkpoint: the second is a "
            "tensor of its own in the state now",
            self._what,
            _tree.show(tied.path),
            _tree.show(own.path),
        )

    def _new(self, w: Wanted) -> Any:
        """A tensor or an array of the saved dtype and shape, uninitialised."""
        found = self._find(w.ref.name)
        if found is None:
            raise CorruptError(f'{self._what}: its tree names tensor "{w.ref.name}", which nobody saved')
        name, shape = found
        module: Any
        if w.ref.tag == "tensor":
            from . import _torch as module
        else:
            from . import _numpy as module
        dtype = module.dtype_of(w.ref.dtype or name)
        if dtype is None or (
            w.ref.dtype and (name != "BYTES" or not shape or shape[-1] != module.item_size(dtype))
        ):
            raise CorruptError(
                f'{self._what}: tensor "{w.ref.name}" is {name} {list(shape)} and not {w.ref.dtype}'
            )
        return module.empty(shape[:-1] if w.ref.dtype else shape, dtype)

    def _want(self, w: Wanted) -> None:
        module, path = arrays_of(w.value), _tree.show(w.path)
        identity = module.identity(w.value)
        tied = self._seen.setdefault(identity, w) if identity is not None else w
        if tied is not w and tied.ref.name == w.ref.name:
            return  # it is being read already
        if tied is not w:
            w.value = module.copy_of(w.value)
            self._untied.append((tied, w))
        targets, after = module.targets_of(w.value, path, self._reach)
        self._after.extend(after)
        for piece in targets:
            if 0 in piece.length:
                continue
            self._devices |= {piece.device} - {_lib.HOST}
            whole = piece.length == piece.shape and piece.strides is None and piece.device == _lib.HOST
            if w.ref.name in self._own and whole:
                self._restore.add_slice(self._own[w.ref.name].index, piece.address, keep=piece.local)
            else:
                self._restore.add(
                    w.ref.name,
                    piece.dtype,
                    piece.shape,
                    piece.address,
                    offset=piece.offset,
                    length=piece.length,
                    strides=piece.strides,
                    device=piece.device,
                    keep=piece.local,
                )


def _described(value: Any) -> str:
    """dtype and shape of a given tensor, as _said() says it of a saved one."""
    module = arrays_of(value)
    name = module.name_of(value)
    return f"{name} {list(value.shape)}"


def _said(dtype: str, shape: tuple[int, ...], true: Optional[str]) -> str:
    return f"{true} {list(shape[:-1])}" if true else f"{dtype} {list(shape)}"


def _listed(names: list[str], what: str) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"{what} ({len(names)}): {', '.join(names[:_NAMES_SHOWN])}{more}"
