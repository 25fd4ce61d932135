# SPDX-License-Identifier: Apache-2.0
"""Which value of a checkpoint belongs where in a state dict that somebody gave.

merge() walks the given state dict beside the tree that was read. It changes nothing: it says which tensors
are wanted where, what is missing, extra or of another kind, and collects what is to be put into containers
once all tensors have been read.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Optional, Union

from . import _tree
from ._layout import leaf_tag
from ._tree import Key, TensorRef

Rename = Union[Mapping[str, str], Callable[[str], str], None]

_MISSING = object()


@dataclasses.dataclass
class Wanted:
    """A tensor of the given state, and what is read into it; value None: it is to be made and handed to
    put(). instead: puts another tensor into the state in the place of the given one."""

    path: Key
    value: Any
    ref: TensorRef
    put: Optional[Callable[[Any], None]] = None
    instead: Optional[Callable[[Any], None]] = None


class Merge:
    """rename: from names of the given state to names in the checkpoint. find: whether a tensor of a name is
    stored, for those that only other ranks' trees know."""

    def __init__(self, saved: Any, rename: Rename, find: Callable[[str], bool]) -> None:
        self.wanted: list[Wanted] = []
        self.puts: list[Callable[[], None]] = []  # in this order, children before their containers
        self.missing: list[str] = []
        self.other_kind: list[str] = []
        self._rename, self._find = _renamer(rename), find
        self._saved = saved
        self._by_name = {_tree.name_of(p): (p, v) for p, v in _nodes(saved, ())} if rename else {}
        self._taken: set[Key] = set()  # paths in the saved tree
        self._containers: dict[int, Any] = {}  # what is put into each of the given lists and dicts, by id()

    def extra(self) -> list[str]:
        """Names of the checkpoint's that the state had no place for."""
        taken = self._taken
        return [
            _tree.name_of(path)
            for path, _ in _tree.leaves_of(self._saved)
            if path and not any(path[:n] in taken for n in range(len(path) + 1))
        ]

    def run(self, given: Any) -> None:
        """given: a dict, which is filled in place."""
        self._visit((), given, (), self._saved, _no_put)

    def _visit(self, path: Key, given: Any, at: Key, saved: Any, put: Callable[[Any], None]) -> None:
        if isinstance(given, (list, dict)):
            given = self._apart(given, saved, put)
        if leaf_tag(type(given)):
            self._tensor(path, given, at, saved, put)
        elif isinstance(given, MutableMapping) and (saved is _MISSING or isinstance(saved, dict)):
            self._mapping(path, given, at, saved)
        elif type(given) in (list, tuple) and (saved is _MISSING or type(saved) in (list, tuple)):
            self._sequence(path, given, at, saved, put)
        elif saved is _MISSING:
            self.missing.append(_tree.name_of(path))
        elif isinstance(given, (dict, list, tuple)) and given:
            self._taken.add(at)
            self._differs(path, given, saved)
        else:
            self._whole(path, saved, at, put)

    def _apart(self, given: Any, saved: Any, put: Callable[[Any], None]) -> Any:
        """A list or dict that is in two places of the state (SequentialLR shares one with a scheduler)
        becomes two where the checkpoint has different contents for them."""
        first = self._containers.setdefault(id(given), saved)
        if first is saved or first is _MISSING or saved is _MISSING or repr(first) == repr(saved):
            return given
        own = copy.copy(given)
        self.puts.append(lambda: put(own))
        return own

    def _differs(self, path: Key, given: Any, saved: Any) -> None:
        self.other_kind.append(
            f"{_tree.name_of(path)} is a {_kind(given)} in the state and a {_kind(saved)} in the checkpoint"
        )

    def _tensor(self, path: Key, given: Any, at: Key, saved: Any, put: Callable[[Any], None]) -> None:
        self._taken.add(at)
        if saved is _MISSING:
            name = self._rename(_tree.name_of(path))
            if not self._find(name):
                self.missing.append(_tree.name_of(path))
                return
            saved = TensorRef(name, leaf_tag(type(given)) or "tensor", None)
        if isinstance(saved, TensorRef):
            self.wanted.append(Wanted(path, given, saved, instead=put))
        else:
            self._differs(path, given, saved)

    def _mapping(self, path: Key, given: Any, at: Key, saved: Any) -> None:
        if not given and saved is not _MISSING:
            for key, value in saved.items():
                self._whole((*path, key), value, (*at, key), _setter(given, key))
            self._taken.add(at)
            return
        for key in list(given):
            self._child((*path, key), given[key], at, saved, key, _setter(given, key))
        if saved is not _MISSING and not saved:
            self._taken.add(at)

    def _child(
        self, path: Key, given: Any, at: Key, saved: Any, key: Any, put: Callable[[Any], None]
    ) -> None:
        name = _tree.name_of(path)
        renamed = self._rename(name)
        if renamed != name:
            found_at, found = self._by_name.get(renamed, ((*at, key), _MISSING))
        else:
            found_at, found = (*at, key), _item(saved, key)
        self._visit(path, given, found_at, found, put)

    def _sequence(self, path: Key, given: Any, at: Key, saved: Any, put: Callable[[Any], None]) -> None:
        if saved is not _MISSING and not (_has_arrays(given) or _has_refs(saved)):
            self._values(given, saved, at, put)
            return
        if not given and saved is not _MISSING:
            self._whole(path, saved, at, given.extend if type(given) is list else put)
            return
        items = given if type(given) is list else list(given)
        for i, item in enumerate(list(items)):
            self._child((*path, i), item, at, saved, i, _setter(items, i))
        if items is not given:
            self.puts.append(
                lambda: put(tuple(items)) if any(a is not b for a, b in zip(items, given)) else None
            )
        if saved is not _MISSING and not saved:
            self._taken.add(at)

    def _values(self, given: Any, saved: Any, at: Key, put: Callable[[Any], None]) -> None:
        """Lists of plain values may have another length."""
        self._taken.add(at)
        if type(given) is list and type(saved) is list:
            self.puts.append(lambda: given.__setitem__(slice(None), saved))
        else:
            self.puts.append(lambda: put(saved))

    def _whole(self, path: Key, saved: Any, at: Key, put: Callable[[Any], None]) -> None:
        """Everything below is taken as it was saved; tensors are made."""
        self._taken.add(at)
        made = build(saved, path, self.wanted)
        self.puts.append(lambda: put(made.get()))


class Built:
    """A value of the tree whose tensors are still to be read; get() gives it once they are."""

    def __init__(self) -> None:
        self.value: Any = None
        self._later: Optional[Callable[[], Any]] = None

    def get(self) -> Any:
        return self._later() if self._later else self.value

    def set(self, value: Any) -> None:
        self.value = value


def build(saved: Any, path: Key, wanted: list[Wanted]) -> Built:
    """Notes every tensor below as wanted, to be made anew."""
    built = Built()
    if isinstance(saved, TensorRef):
        wanted.append(Wanted(path, None, saved, built.set))
    elif isinstance(saved, dict):
        kids = [(k, build(v, (*path, k), wanted)) for k, v in saved.items()]
        built._later = lambda: _fill_like(saved, kids)
    elif type(saved) in (list, tuple):
        items = [build(v, (*path, i), wanted) for i, v in enumerate(saved)]
        built._later = lambda: type(saved)(item.get() for item in items)
    else:
        built.value = saved
    return built


def _fill_like(saved: Any, kids: list[tuple[Any, Built]]) -> Any:
    made = type(saved)({k: kid.get() for k, kid in kids})
    if hasattr(saved, "_metadata"):
        made._metadata = saved._metadata
    return made


def _no_put(_: Any) -> None:
    raise AssertionError("the state dict itself is filled in place")


def _setter(container: Any, key: Any) -> Callable[[Any], None]:
    return lambda value: container.__setitem__(key, value)


def _item(saved: Any, key: Any) -> Any:
    if saved is _MISSING:
        return _MISSING
    if isinstance(saved, dict):
        return saved.get(key, _MISSING)
    return saved[key] if type(key) is int and key < len(saved) else _MISSING


def _kind(value: Any) -> str:
    return "tensor" if isinstance(value, TensorRef) or leaf_tag(type(value)) else type(value).__name__


def _has_arrays(value: Any) -> bool:
    return any(leaf_tag(type(v)) for _, v in _tree.leaves_of(value))


def _has_refs(value: Any) -> bool:
    return any(isinstance(v, TensorRef) for _, v in _tree.leaves_of(value))


def _nodes(tree: Any, path: Key) -> Any:
    """Every node of a tree with its path."""
    if path:
        yield path, tree
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _nodes(value, (*path, key))
    elif type(tree) in (list, tuple):
        for key, value in enumerate(tree):
            yield from _nodes(value, (*path, key))


def _renamer(rename: Rename) -> Callable[[str], str]:
    """A mapping's entry holds for its name and for all names below it; the longest one counts."""
    if rename is None:
        return lambda name: name
    if callable(rename):
        return rename
    table = dict(rename)

    def apply(name: str) -> str:
        head, tail = name, ""
        while True:
            if head in table:
                return table[head] + tail
            head, dot, last = head.rpartition(".")
            if not dot:
                return name
            tail = f".{last}{tail}"

    return apply
