# SPDX-License-Identifier: Apache-2.0
"""State dicts on their way: what is imported gets a tree document, what is exported gets its nesting back
from one."""

from __future__ import annotations

import collections
from typing import Any, Callable, Dict, Hashable, List, Optional, Tuple

from .._tree import TensorRef, Tree
from .errors import ConvertError

TREE = ".cairn/tree/"
RESERVED = ".cairn/"
_ROOM = 4096  # a document's size is a multiple


class Named:
    """A tensor of a source that knows no nesting: only its name."""


def tree_of(
    state: Any,
    is_tensor: Callable[[type], bool],
    identity: Callable[[Any], Optional[Hashable]] = lambda tensor: None,
    true_dtype: Callable[[Any], Optional[str]] = lambda tensor: None,
) -> Tree:
    """The tree of a state dict. identity: equal for tensors that are one (tied); true_dtype: where Cairn has
    no such dtype. Errors: cairn.InvalidError names what cannot be stored."""
    return Tree(
        state,
        lambda kind: "tensor" if is_tensor(kind) else None,
        identity,
        lambda value, path: true_dtype(value),
    )


def flat_tree(names: List[str]) -> Tree:
    """The tree of a dict of tensors by name."""
    return tree_of(dict.fromkeys(names, Named()), lambda kind: kind is Named)


def tree_document(tree: Tree) -> bytes:
    """A document's bytes: padded with spaces."""
    text = tree.text.encode()
    return text + b" " * (-len(text) % _ROOM)


# ---- export ------------------------------------------------------------------------------------------------

_MAX_PATH = 100  # deeper nothing is nested in a tree


class Room:
    """How many places of lists may be made for values that are yet to come: in a whole state no more than all
    of them fill, however many lists their paths lead through. values: how many are put."""

    def __init__(self, values: int) -> None:
        self._left = values * _MAX_PATH + 4096

    def take(self, places: int) -> bool:
        self._left -= max(places, 0)
        return self._left >= 0


def put(state: Dict[Any, Any], path: Tuple[Any, ...], value: Any, what: str, room: Room) -> None:
    """Puts a value where its path leads, as DCP does: words lead through dicts, numbers through lists.
    Errors: ConvertError "corrupt" names what the value is."""
    at: Any = state
    if len(path) > _MAX_PATH:
        raise ConvertError("corrupt", f"{what}: its path has {len(path)} parts")
    for i, key in enumerate(path):
        if isinstance(at, list):
            if type(key) is not int or key < 0 or not room.take(key - len(at)):
                raise ConvertError("corrupt", f"{what}: its path {path} leads into a list by {key!r}")
            at += [None] * (key + 1 - len(at))
        elif not isinstance(at, dict):
            raise ConvertError("corrupt", f"{what}: its path {path} leads through a value")
        if i + 1 == len(path):
            at[key] = value
            return
        below = at[key] if isinstance(at, list) else at.get(key)
        if below is None:
            below = at[key] = [] if type(path[i + 1]) is int else {}
        at = below


Mapper = Callable[[Any], Any]


def map_leaves(value: Any, leaf: Mapper) -> Any:
    """A state dict with leaf(x) in the place of everything that is no dict, list or tuple. What torch hangs
    on an OrderedDict (_metadata) stays on it."""
    if isinstance(value, dict):
        made = type(value)((key, map_leaves(item, leaf)) for key, item in value.items())
        if hasattr(value, "_metadata"):
            made._metadata = value._metadata  # type: ignore[attr-defined]
        return made
    if type(value) in (list, tuple):
        return type(value)(map_leaves(item, leaf) for item in value)
    return leaf(value)


def merge(first: Any, second: Any) -> Any:
    """What two ranks' state dicts say together: dicts joined, and where both have a value the first's."""
    if isinstance(first, dict) and isinstance(second, dict):
        joined = type(first)(first)
        for key, value in second.items():
            joined[key] = merge(joined[key], value) if key in joined else value
        if hasattr(first, "_metadata"):
            joined._metadata = first._metadata  # type: ignore[attr-defined]
        return joined
    if type(first) is list and type(second) is list and len(first) == len(second):
        return [merge(a, b) for a, b in zip(first, second)]
    return first


_NOTHING = object()


def only(value: Any, prefix: str) -> Any:
    """The parts of a state dict whose names (paths joined by ".") begin with prefix; containers that become
    empty go. Errors: ConvertError "not_found" when nothing is left."""
    kept = _only(value, prefix, "")
    if kept is _NOTHING:
        raise ConvertError("not_found", f'nothing in the checkpoint begins with "{prefix}"')
    return kept


def _only(value: Any, prefix: str, path: str) -> Any:
    if path.startswith(prefix):
        return value
    if isinstance(value, dict):
        pairs = [(key, _only(item, prefix, _join(path, key))) for key, item in value.items()]
        kept = type(value)((key, item) for key, item in pairs if item is not _NOTHING)
        if hasattr(value, "_metadata"):
            kept._metadata = value._metadata  # type: ignore[attr-defined]
        return kept if kept else _NOTHING
    if type(value) in (list, tuple):
        items = [_only(item, prefix, _join(path, i)) for i, item in enumerate(value)]
        left = [item for item in items if item is not _NOTHING]
        return type(value)(left) if left else _NOTHING
    return _NOTHING


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def strip(value: Any, prefix: str) -> Any:
    """Takes prefix (and a dot behind it) from the front of names: what it leads to moves to the root. Other
    names stay. Errors: ConvertError "exists" when two values would have one name."""
    if not prefix or not isinstance(value, dict):
        return value
    taken: List[Tuple[Any, Any]] = []
    meta: List[Any] = []
    kept = _strip(value, prefix, "", taken, meta)
    pairs = taken + (list(kept.items()) if kept is not _NOTHING else [])
    made: Dict[Any, Any] = collections.OrderedDict(pairs) if meta else dict(pairs)
    if len(made) != len(pairs):
        raise ConvertError(
            "exists",
            f'without "{prefix}" two values of the checkpoint would have one name: --only one of them',
        )
    if meta:
        made._metadata = meta[0]  # type: ignore[attr-defined]
    return made


def _strip(value: Any, prefix: str, path: str, taken: List[Tuple[Any, Any]], meta: List[Any]) -> Any:
    kept = {}
    for key, item in value.items():
        name = _join(path, key)
        if isinstance(item, dict) and name == prefix.rstrip("."):
            taken += item.items()
            meta += [item._metadata] if hasattr(item, "_metadata") else []
        elif name.startswith(prefix) and name[len(prefix) :].lstrip("."):
            taken.append((name[len(prefix) :].lstrip("."), item))
        elif isinstance(item, dict) and prefix.startswith(name + "."):
            inner = _strip(item, prefix, name, taken, meta)
            if inner is not _NOTHING:
                kept[key] = inner
        else:
            kept[key] = item
    return kept if kept else _NOTHING


def flat(names: List[str]) -> Dict[str, TensorRef]:
    """A state dict for a checkpoint that has no tree: every tensor by its name."""
    return {name: TensorRef(name, "tensor", None) for name in names if not name.startswith(RESERVED)}
