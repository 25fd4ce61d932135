# SPDX-License-Identifier: Apache-2.0
"""A save of a state that its owner has promised to leave as it is built (Checkpointer.prepare(static=True)):
nothing is done for each tensor.

once         where each tensor hangs, its memory, and the document: text that stays, parts that may change
each save    these parts; objects and groups; a sample of the tensors and of what they hang on, the next one
             each time, so that after as many saves as there are samples all have been looked at
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Optional

from . import _tree

if TYPE_CHECKING:
    from ._layout import Layout

_SAMPLE = 128  # tensors that one save looks at
_SPARE = 16  # room that a part of the document may grow by until all that follows is moved


_Columns = Sequence[list[Any]]


class BrokenError(Exception):
    """Something is not as it was promised to be. Its text says what."""


class Promise:
    """layout: with its table; state: as Layout.refresh() took it just now, and its values; fixed: what stays
    of it."""

    def __init__(self, layout: "Layout", state: Any, fixed: _tree.Fixed) -> None:
        self._layout, self._fixed = layout, fixed
        self._kind, self._keys = type(state), list(state)
        values = layout.values
        staying = set(fixed.numbers)
        self._loose = [i for i in range(len(values)) if i not in staying]
        self._loose_kinds = [type(values[i]) for i in self._loose]
        self._rows = [(row, leaf, more) for row, (leaf, more) in layout.rows() if leaf not in staying]
        self._at = dict(enumerate(layout.addresses()))  # of each leaf
        self._same = [pair for pair in layout.ties() if not staying.issuperset(pair)]
        self._signature = _Signature([values[i] for i in self._loose])
        self._samples = _samples(layout, fixed)
        self._next = 0
        self.memory = _memory_of([values[i] for i in fixed.numbers])
        self._document = _Document(fixed.text)

    def is_about(self, state: Any) -> bool:
        """Whether it is about this very dict, so that nobody need look what there is in it."""
        return self._fixed.root is state

    @property
    def saves(self) -> int:
        """After how many everything has been looked at."""
        return len(self._samples)

    def repeat(self, state: Any) -> bool:
        """Makes the table fit what has changed. False: it cannot, and all is to be looked at; the promise may
        hold all the same. Raises BrokenError."""
        root = self._fixed.root
        if root is not None:
            if state is not root:
                raise BrokenError("state_dict is another dict")
            if len(state) != len(self._keys):
                raise BrokenError(f"state_dict has {len(state)} entries where it had {len(self._keys)}")
        elif type(state) is not self._kind or list(state) != self._keys:
            return False  # of more or fewer entries
        for key, value in self._fixed.objects.items():
            if state[key] is not value:
                raise BrokenError(f"state_dict[{key!r}] is another object")
        for check in self._fixed.checks:
            other = check()
            if other:
                raise BrokenError(other)
        self._look()
        try:
            return self._write(state)
        except (_tree.Changed, RuntimeError):  # also of a tensor without an address, or nested too deeply
            return False

    def _look(self) -> None:
        other = self._samples[self._next].other()
        if other:
            raise BrokenError(other)
        self._next = (self._next + 1) % len(self._samples)

    def _write(self, state: Any) -> bool:
        leaves: list[Any] = []
        texts = [part.text(state, leaves) for part in self._fixed.parts]
        if list(map(type, leaves)) != self._loose_kinds:
            return False
        addresses = self._signature.addresses(leaves)
        if addresses is None:
            return False
        at = self._at
        at.update(zip(self._loose, addresses))
        if any(at[i] != at[j] for i, j in self._same):
            return False
        if not self._document.write(texts, self._layout.document):
            return False
        for row, leaf, more in self._rows:
            self._layout.table.set_address(row, at[leaf] + more)
        self._layout.values = leaves
        return True

    def memory_on_devices(self) -> list[Any]:
        """Owners of what devices are to copy, and perhaps of more."""
        return [self.memory, *_memory_of(self._layout.values)]


class _Document:
    """The tree document in its room: parts that may change have some spaces behind them, so that usually only
    they are written."""

    def __init__(self, text: Sequence[Any]) -> None:
        self._text = [t.encode("ascii") if isinstance(t, str) else None for t in text]
        self._places: list[tuple[int, int]] = []  # of each part: where, and room
        self._now: list[bytes] = []

    def write(self, texts: list[bytes], view: memoryview) -> bool:
        """False: it has become too long."""
        if len(texts) != len(self._places) or any(len(t) > n for t, (_, n) in zip(texts, self._places)):
            return self._write_all(texts, view)
        if texts != self._now:
            for text, before, (at, room) in zip(texts, self._now, self._places):
                if text != before:
                    view[at : at + room] = text.ljust(room)
            self._now = texts
        return True

    def _write_all(self, texts: list[bytes], view: memoryview) -> bool:
        out, places, at, parts = [], [], 0, iter(texts)
        for text in self._text:
            if text is None:
                part = next(parts)
                text = part.ljust(len(part) + _SPARE)
                places.append((at, len(text)))
            out.append(text)
            at += len(text)
        if at > len(view):
            return False
        view[:] = b"".join(out).ljust(len(view))
        self._places, self._now = places, texts
        return True


class _Sample:
    """Some tensors (owners, keys, values, names), and some of what all hang on."""

    def __init__(self, tensors: _Columns, links: _Columns, sizes: _Columns) -> None:
        self._tensors, self._links, self._sizes = tensors, links, sizes
        self._signature = _Signature(tensors[2])
        self._at = self._signature.addresses(tensors[2])

    def other(self) -> Optional[str]:
        """What is not as it was."""
        for owners, keys, values, names in (self._tensors, self._links):
            same = list(map(operator.is_, map(_held_by, owners, keys), values))
            if not all(same):
                return f'"{names[same.index(False)]}" is another object'
        if self._memory_differs(self._tensors[2]):
            return self._which(self._tensors[2])
        containers, lengths, names = self._sizes
        same = list(map(operator.eq, map(len, containers), lengths))
        return None if all(same) else f'"{names[same.index(False)]}" has entries more or less'

    def _memory_differs(self, values: list[Any]) -> bool:
        try:
            return self._signature.addresses(values) != self._at
        except RuntimeError:
            return True

    def _which(self, values: list[Any]) -> str:
        for i, value in enumerate(values):
            try:
                at = self._signature.address_of(i, value)
            except RuntimeError:
                at = None
            if self._at is None or at != self._at[i]:
                return f'tensor "{self._tensors[3][i]}" has other memory, or another shape or dtype'
        return f'a tensor beside "{self._tensors[3][0]}" is of another kind'


def _held_by(owner: Any, key: Any) -> Any:
    """Without an entry being made in a defaultdict."""
    if isinstance(owner, dict):
        return owner.get(key, _held_by)
    return owner[key] if key < len(owner) else _held_by


class _Signature:
    """How arrays of any kind lie in memory."""

    def __init__(self, values: list[Any]) -> None:
        from ._layout import leaf_tag

        tags = [leaf_tag(type(v)) for v in values]
        self._torch = [i for i, tag in enumerate(tags) if tag == "tensor"]
        self._numpy = [i for i, tag in enumerate(tags) if tag != "tensor"]
        self._arrays = self._arrays_in(values)
        self._tensors: Any = None
        if self._torch:
            from . import _torch

            self._tensors = _torch.Signature([values[i] for i in self._torch])

    def _arrays_in(self, values: list[Any]) -> list[Any]:
        return [(values[i].dtype.str, values[i].shape, values[i].strides) for i in self._numpy]

    def addresses(self, values: list[Any]) -> Optional[list[int]]:
        """Where they lie; None if not as the first ones did. Raises RuntimeError for what has no address."""
        if not self._numpy:
            return self._tensors.addresses(values) if self._tensors else []
        at = [0] * len(values)
        if self._tensors:
            tensors = self._tensors.addresses([values[i] for i in self._torch])
            if tensors is None:
                return None
            for i, address in zip(self._torch, tensors):
                at[i] = address
        if self._arrays_in(values) != self._arrays:
            return None
        from . import _numpy

        for i in self._numpy:
            at[i] = _numpy.address_of(values[i])
        return at

    def address_of(self, number: int, value: Any) -> Optional[int]:
        """Of one of them."""
        if number in self._numpy:
            from . import _numpy

            at = self._numpy.index(number)
            is_same = (value.dtype.str, value.shape, value.strides) == self._arrays[at]
            return _numpy.address_of(value) if is_same else None
        return self._tensors.address_of(self._torch.index(number), value)


def _samples(layout: "Layout", fixed: _tree.Fixed) -> list[_Sample]:
    count = -(-len(fixed.numbers) // _SAMPLE) or 1
    values = [layout.values[n] for n in fixed.numbers]
    names = [layout.tree.leaves[n].name for n in fixed.numbers]
    tensors = fixed.owners, fixed.keys, values, names
    all_of_it = (tensors, fixed.links, fixed.sizes)
    return [_Sample(*(_share(whole, i, count) for whole in all_of_it)) for i in range(count)]


def _share(whole: _Columns, i: int, count: int) -> _Columns:
    return [column[len(column) * i // count : len(column) * (i + 1) // count] for column in whole]


def _memory_of(values: list[Any]) -> list[Any]:
    """What owns the memory of arrays."""
    from ._layout import leaf_tag

    kinds = {kind: leaf_tag(kind) for kind in set(map(type, values))}
    tensors = [v for v in values if kinds[type(v)] == "tensor"]
    arrays = [v for v in values if kinds[type(v)] != "tensor"]
    if not tensors:
        return arrays
    from . import _torch

    return [*_torch.memory_of(tensors), *arrays]
