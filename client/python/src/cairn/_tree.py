# SPDX-License-Identifier: Apache-2.0
"""The tree document: everything of a state dict that is no tensor, as JSON (docs/python-state.md).

Tensors and numpy arrays appear in it as references by name; what they contain goes through Cairn's own
tables. Reading a document builds plain Python values and nothing else: no class is looked up, no code runs,
but for {"t":"pickle"} nodes, which are made and read only where both sides ask for it.

Writing has a fast path. Tree.refresh() walks a state dict that is built like the one before and repeats only
the text of what may have changed; where it is built differently it says so, and a new Tree is made.

Neither torch nor numpy is imported here: values of theirs can only come from a program that has imported
them.
"""

from __future__ import annotations

import base64
import binascii
import collections
import copy
import functools
import json
import math
import pickle
import re
import struct
import sys
from collections.abc import Callable, Collection, Hashable, Iterator
from json.encoder import encode_basestring_ascii as _quote
from typing import Any, Optional, Union

from .errors import CorruptError, InvalidError

VERSION = 1
MAX_DEPTH = 100  # nested containers; a few of Python's own frames each
_MAX_INT = 2**63 - 1  # larger ones are tagged, for readers without long integers
_PLAIN = (type(None), bool, int, float, str)

Key = tuple[Any, ...]  # where a value is: the keys and positions on the way to it


def name_of(path: Key) -> str:
    """The Cairn name of what is at a path: its keys joined by dots, control characters and lone surrogates
    escaped."""
    name = ".".join(k if type(k) is str else str(k) for k in path)
    if name.isprintable():
        return name
    return "".join(
        c if c.isprintable() or c == "\u00a0" else c.encode("unicode_escape").decode() for c in name
    )


def show(path: Key) -> str:
    """A path as a programmer would write it."""
    return "state_dict" + "".join(f"[{k!r}]" for k in path)


# ---- writing: values ---------------------------------------------------------------------------------------


class Changed(Exception):
    """The value is not built as it was; caught by Tree.refresh()."""


class Pickler:
    """Writes what the tree has no form for. allowed: what the user said."""

    def __init__(self, allowed: bool) -> None:
        self.allowed = allowed

    def text(self, value: Any, path: Key) -> str:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        if not self.allowed:
            raise InvalidError(f"{show(path)} is a {kind}, {_advice(value)}")
        try:
            data = pickle.dumps(value, protocol=4)
        except Exception as e:  # noqa: BLE001 - whatever the object's own code raises
            raise InvalidError(
                f"{show(path)} is a {kind} that cannot be pickled ({e}): drop it from the state dict"
            ) from e
        return f'{{"t":"pickle","v":"{base64.b64encode(data).decode()}"}}'


def _advice(value: Any) -> str:
    if isinstance(value, tuple):
        return (
            "a named tuple, whose class a checkpoint does not carry: save tuple(x) or x._asdict(), or pass "
            "pickle=True"
        )
    if isinstance(value, dict):
        return "which a checkpoint does not carry: save dict(x), or pass pickle=True"
    if callable(value):
        return "code, which a checkpoint does not carry: drop it from the state dict, or pass pickle=True"
    return "which a checkpoint does not carry: drop it, save what it is made of, or pass pickle=True"


def _float_text(value: float) -> str:
    if math.isfinite(value):
        return float.__repr__(value)
    return f'{{"t":"float","v":"{struct.pack(">d", value).hex()}"}}'


def _int_text(value: int) -> str:
    return int.__repr__(value) if -_MAX_INT <= value <= _MAX_INT else f'{{"t":"int","v":"{value:x}"}}'


def _bytes_text(tag: str) -> Callable[[Any], str]:
    return lambda value: f'{{"t":"{tag}","v":"{base64.b64encode(value).decode()}"}}'


def _complex_text(value: complex) -> str:
    return f'{{"t":"complex","v":[{_float_text(value.real)},{_float_text(value.imag)}]}}'


def _size_text(value: Any) -> str:
    return f'{{"t":"size","v":[{",".join(map(str, value))}]}}'


def _torch_text(tag: str) -> Callable[[Any], str]:
    return lambda value: f'{{"t":"{tag}","v":{_quote(str(value).removeprefix("torch."))}}}'


def _number_text(value: Any) -> str:
    """A numpy scalar."""
    return f'{{"t":"number","d":{_quote(value.dtype.str)},"v":"{value.tobytes().hex()}"}}'


_SCALARS: dict[type, Callable[[Any], str]] = {
    type(None): lambda value: "null",
    bool: lambda value: "true" if value else "false",
    int: _int_text,
    float: _float_text,
    str: _quote,
    bytes: _bytes_text("bytes"),
    bytearray: _bytes_text("bytearray"),
    complex: _complex_text,
}
_SEQUENCES: dict[type, str] = {list: "list", tuple: "tuple", set: "set", frozenset: "frozenset"}
_MAPPINGS: dict[type, str] = {
    dict: "dict",
    collections.OrderedDict: "odict",
    collections.defaultdict: "dict",
    collections.Counter: "counter",  # MultiStepLR's milestones
}
_MADE = {"dict": dict, "odict": collections.OrderedDict, "counter": collections.Counter}


def _scalar_writer(kind: type) -> Optional[Callable[[Any], str]]:
    """How a scalar of this exact type is written, or None."""
    writer = _SCALARS.get(kind)
    if writer or kind.__module__ not in ("torch", "numpy"):
        return writer
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch and kind.__module__ == "torch":
        return {
            torch.Size: _size_text,
            torch.dtype: _torch_text("dtype"),
            torch.device: _torch_text("device"),
        }.get(kind)
    if numpy and issubclass(kind, numpy.generic) and not issubclass(kind, (numpy.object_, numpy.void)):
        return _number_text
    return None


def _all_plain(values: Any) -> Optional[str]:
    """The text of many plain values at once, or None where one of them needs more than JSON has."""
    kinds = set(map(type, values))
    if not kinds.issubset(_PLAIN):
        return None
    if (
        int in kinds
        and (max(map(_magnitude, values)) if kinds != {int} else max(max(values), -min(values))) > _MAX_INT
    ):
        return None
    try:
        return json.dumps(list(values), allow_nan=False, separators=(",", ":"))
    except ValueError:
        return None


def _magnitude(value: Any) -> int:
    return abs(value) if type(value) is int else 0


class Known(list):  # type: ignore[type-arg]
    """A list that nobody changes: its text is made once."""

    __slots__ = ("text",)


class _ValueWriter:
    """Text of values without tensors. A tensor, found where there was none, raises Changed."""

    def __init__(self, pickler: Pickler, is_leaf: Callable[[type], Optional[str]]) -> None:
        self.pickler = pickler
        self.is_leaf = is_leaf

    def text(self, value: Any, path: Key) -> str:
        kind = type(value)
        scalar = _SCALARS.get(kind)
        if scalar:
            return scalar(value)
        if len(path) > MAX_DEPTH:
            raise InvalidError(
                f"{show(path[:6])}...: nested deeper than {MAX_DEPTH}: does it contain itself?"
            )
        if kind in _SEQUENCES:
            return f'{{"t":"{_SEQUENCES[kind]}","v":{self._items(value, path)}}}'
        if kind in _MAPPINGS:
            keys, values = list(value), list(value.values())
            return (
                f'{{"t":"{_MAPPINGS[kind]}","k":{self._items(keys, path)},'
                f'"v":{self._items(values, path, keys)}{self.attributes(value, path)}}}'
            )
        if kind is Known:
            return self._known(value, path)
        if self.is_leaf(kind):
            raise Changed(path)
        scalar = _scalar_writer(kind)
        return scalar(value) if scalar else self.pickler.text(value, path)

    def _known(self, value: Known, path: Key) -> str:
        if not hasattr(value, "text"):
            value.text = self.text(list(value), path)
        return value.text

    def _items(self, values: Any, path: Key, keys: Any = None) -> str:
        plain = _all_plain(values) if len(values) else "[]"
        if plain is not None:
            return plain
        names = keys if keys is not None else range(len(values))
        return f"[{','.join([self.text(v, (*path, k)) for k, v in zip(names, values)])}]"

    def attributes(self, value: Any, path: Key) -> str:
        """What torch hangs on the OrderedDict of Module.state_dict(): versions of modules."""
        meta = getattr(value, "_metadata", None)
        return "" if meta is None else f',"m":{self.text(meta, (*path, "_metadata"))}'


# ---- writing: the tree -------------------------------------------------------------------------------------


_MANY = 64  # tensors: a dict or list at the top that has fewer is looked at in full by each save


class Part:
    """Of the document: what may be otherwise in the next save. refresh: as of the tree, given the state."""

    def __init__(self, refresh: Callable[[Any, list[Any], list[str]], None]) -> None:
        self._refresh = refresh

    def text(self, state: Any, leaves: list[Any]) -> bytes:
        out: list[str] = []
        self._refresh(state, leaves, out)
        return "".join(out).encode("ascii")


class Fixed:
    """What stays of a state dict whose owner has promised so, as Tree.fix() finds it."""

    def __init__(self) -> None:
        self.text: list[Any] = []  # the document: strings, and parts
        self.parts: list[Part] = []
        self.root: Any = None  # the state itself, where it has many tensors at its top
        self.objects: dict[Any, Any] = {}  # at the top of the state
        self.checks: list[Callable[[], Optional[str]]] = []  # each: what is not as it was
        self.numbers: list[int] = []  # of leaves that stay, each with what holds it
        self.owners: list[Any] = []
        self.keys: list[Any] = []
        # Lists beside each other, and no tuples in them: the garbage collector would look at each.
        self.links: tuple[list[Any], ...] = ([], [], [], [])  # owner, key, value, name of what else stays
        self.sizes: tuple[list[Any], ...] = ([], [], [])  # container, length, name
        self.leaves = 0

    def say(self, text: str) -> None:
        if self.text and isinstance(self.text[-1], str):
            self.text[-1] += text
        else:
            self.text.append(text)

    def leaf(self, owner: Any, key: Any) -> None:
        """The next leaf is owner[key]."""
        self.numbers.append(self.leaves)
        self.owners.append(owner)
        self.keys.append(key)
        self.leaves += 1

    def part(self, state: Any, refresh: Callable[[Any, list[Any], list[str]], None]) -> None:
        """The next text, and the leaves in it, are read anew."""
        leaves: list[Any] = []
        refresh(state, leaves, [])
        self.leaves += len(leaves)
        self.parts.append(Part(refresh))
        self.text.append(self.parts[-1])

    def link(self, owner: Any, key: Any, value: Any, name: str) -> None:
        for column, cell in zip(self.links, (owner, key, value, name)):
            column.append(cell)

    def size(self, container: Any, name: str) -> None:
        for column, cell in zip(self.sizes, (container, len(container), name)):
            column.append(cell)


class _Leaf:
    """A tensor."""

    def __init__(self, kind: type, text: str) -> None:
        self.kind, self.body = kind, text

    def refresh(self, value: Any, leaves: list[Any], out: list[str]) -> None:
        if type(value) is not self.kind:
            raise Changed
        leaves.append(value)
        out.append(self.body)


class _Value:
    """Something without tensors: its text is made anew each time."""

    def __init__(self, writer: _ValueWriter, path: Key) -> None:
        self.writer, self.path = writer, path

    def refresh(self, value: Any, leaves: list[Any], out: list[str]) -> None:
        out.append(self.writer.text(value, self.path))


class _Container:
    """A dict, list or tuple with tensors in it. flat: with nothing but tensors."""

    def __init__(self, value: Any, path: Key, kids: list[Any], writer: _ValueWriter) -> None:
        self.kind = type(value)
        self.keys = list(value) if self.kind in _MAPPINGS else None
        self.key_types = list(map(type, value)) if self.keys and set(map(type, value)) != {str} else None
        self.types = list(map(type, self._values(value)))
        self.kids = kids
        self.writer, self.path = writer, path
        self.meta, self.meta_text = self._meta(value)
        tag = _MAPPINGS.get(self.kind) or _SEQUENCES[self.kind]
        keys = "" if self.keys is None else f'"k":{writer._items(self.keys, path)},'
        self.head = f'{{"t":"{tag}",{keys}"v":['
        self.flat = all(type(k) is _Leaf for k in kids)
        self.body = (
            self.head + ",".join(k.body for k in kids) + "]" + self.meta_text + "}" if self.flat else ""
        )

    def _values(self, value: Any) -> Any:
        return value.values() if self.keys is not None else value

    def _meta(self, value: Any) -> tuple[Any, str]:
        if self.kind is not collections.OrderedDict or not hasattr(value, "_metadata"):
            return None, ""
        return copy.deepcopy(value._metadata), self.writer.attributes(value, self.path)

    def refresh(self, value: Any, leaves: list[Any], out: list[str]) -> None:
        if type(value) is not self.kind:
            raise Changed
        values = value
        if self.keys is not None:
            if list(value) != self.keys or (
                self.key_types and list(map(type, value)) != self.key_types
            ):  # 1 == True
                raise Changed
            values = value.values()
        if self.meta is not None and getattr(value, "_metadata", None) != self.meta:
            raise Changed
        if self.flat:
            if list(map(type, values)) != self.types:
                raise Changed
            leaves.extend(values)
            out.append(self.body)
        elif len(values) == len(self.kids):
            self._refresh_kids(values, leaves, out)
        else:
            raise Changed

    def _refresh_kids(self, values: Any, leaves: list[Any], out: list[str]) -> None:
        before = self.head
        for kid, value in zip(self.kids, values):
            out.append(before)
            kid.refresh(value, leaves, out)
            before = ","
        out.append("]" + self.meta_text + "}")

    def fix(self, value: Any, path: Key, fixed: Fixed, state: Any) -> None:
        """Notes what stays: all but plain values."""
        fixed.size(value, name_of(path))
        fixed.say(self.head)
        keys = self.keys if self.keys is not None else range(len(value))
        for i, (key, kid) in enumerate(zip(keys, self.kids)):
            fixed.say("," if i else "")
            if type(kid) is _Leaf:
                fixed.say(kid.body)
                fixed.leaf(value, key)
            elif type(kid) is _Container:
                fixed.link(value, key, value[key], name_of((*path, key)))
                kid.fix(value[key], (*path, key), fixed, state)
            else:
                fixed.part(state, functools.partial(_refresh_at, kid, value, key))
        fixed.say("]" + self.meta_text + "}")


def _refresh_at(kid: Any, owner: Any, key: Any, state: Any, leaves: list[Any], out: list[str]) -> None:
    kid.refresh(owner[key], leaves, out)


def _refresh_top(kid: Any, key: Any, state: Any, leaves: list[Any], out: list[str]) -> None:
    kid.refresh(state[key], leaves, out)


class _LiveModule:
    """A module in the place of its state dict, which was built before."""

    def __init__(self, kid: _Container, live: Any) -> None:
        self.kid, self.live, self.body = kid, live, kid.body

    def refresh(self, value: Any, leaves: list[Any], out: list[str]) -> None:
        if isinstance(value, dict):
            self.kid.refresh(value, leaves, out)
            return
        tensors = self.live.tensors() if self.live.is_of(value) else None
        if tensors is None:
            raise Changed
        leaves.extend(tensors)
        self._write(leaves, out)

    def _write(self, leaves: list[Any], out: list[str]) -> None:
        out.append(self.body)

    def fix(self, key: Any, fixed: Fixed, state: Any) -> None:
        """Notes what stays."""
        fixed.say(self.body)
        self.live.fix(fixed, name_of((key,)))


class _LiveOptimizer(_LiveModule):
    """As well; its groups are written anew each time."""

    def __init__(self, kid: _Container, live: Any, state: Any) -> None:
        super().__init__(kid, live)
        out = [kid.head]
        kid.kids[0].refresh(state["state"], [], out)
        self.body = "".join(out) + ","

    def _write(self, leaves: list[Any], out: list[str]) -> None:
        out.append(self.body)
        self._write_groups(None, leaves, out)
        out.append("]" + self.kid.meta_text + "}")

    def _write_groups(self, state: Any, leaves: list[Any], out: list[str]) -> None:
        self.kid.kids[1].refresh(self.live.groups(), leaves, out)

    def fix(self, key: Any, fixed: Fixed, state: Any) -> None:
        super().fix(key, fixed, state)
        fixed.part(state, self._write_groups)
        fixed.say("]" + self.kid.meta_text + "}")


class Leaf:
    """A tensor or array of a state dict. name: under which it is stored; path: where it is. same_as: the
    number of an earlier leaf that is the very same memory, or None."""

    __slots__ = ("name", "path", "tag", "same_as")

    def __init__(self, name: str, path: Key, tag: str, same_as: Optional[int]) -> None:
        self.name, self.path, self.tag, self.same_as = name, path, tag, same_as


class Tree:
    """How a state dict is built, and its document.

    state: the state dict. leaf_tag: for the type of a value the tag of its node ("tensor", "ndarray"), or
    None when it is no array. identity: for an array something that is equal only for the same memory seen the
    same way, or None; dtype: its true dtype where it is stored as bytes, or None. Raises InvalidError, which
    names the path, for what cannot be stored.
    """

    def __init__(
        self,
        state: Any,
        leaf_tag: Callable[[type], Optional[str]],
        identity: Callable[[Any], Optional[Hashable]],
        dtype: Callable[[Any, Key], Optional[str]],
        pickle_allowed: bool = False,
    ) -> None:
        self.leaves: list[Leaf] = []
        self.values: list[Any] = []  # the arrays themselves, one for each leaf; the caller takes them
        self._leaf_tag, self._identity, self._dtype = leaf_tag, identity, dtype
        self._writer = _ValueWriter(Pickler(pickle_allowed), leaf_tag)
        self._seen: dict[Hashable, int] = {}
        self._names: dict[str, Key] = {}
        out: list[str] = []
        try:
            self._root = self._build(state, ())
            self._root.refresh(state, [], out)
        except Changed as e:
            raise InvalidError(
                f"{show(e.args[0])} is a tensor in a set or in a key: put it into a dict, list or tuple"
            ) from None
        except RecursionError:
            raise InvalidError("the state dict is nested too deeply for this place in the program") from None
        self._seen.clear()
        self._names.clear()
        self.text = _document(out)

    def refresh(self, state: Any) -> Optional[list[Any]]:
        """The arrays of a state dict that is built as the one before, and self.text for it; None when it is
        not."""
        leaves: list[Any] = []
        out: list[str] = []
        try:
            self._root.refresh(state, leaves, out)
        except (Changed, RecursionError):
            return None
        self.text = _document(out)
        return leaves

    def watch(self, state: Any, key: Any, live: Any) -> None:
        """From now on refresh() takes an object in the place of state[key], its state dict. live: see _live."""
        if type(self._root) is not _Container or not self._root.keys or key not in self._root.keys:
            return
        at = self._root.keys.index(key)
        kid = self._root.kids[at]
        kid = kid.kid if isinstance(kid, _LiveModule) else kid
        if type(kid) is not _Container:
            return
        if kid.keys == ["state", "param_groups"] and type(kid.kids[0]) is _Container:
            self._root.kids[at] = _LiveOptimizer(kid, live, state[key])
        elif kid.flat:
            self._root.kids[at] = _LiveModule(kid, live)

    def is_watched(self, key: Any, value: Any) -> bool:
        """Whether refresh() takes this object."""
        if type(self._root) is not _Container or not self._root.keys or key not in self._root.keys:
            return False
        kid = self._root.kids[self._root.keys.index(key)]
        return isinstance(kid, _LiveModule) and kid.live.is_of(value)

    def fix(self, state: Any, made: Collection[Any] = ()) -> Optional[Fixed]:
        """What stays of a state that refresh() has just taken, if its owner leaves it as it is built:
        objects, and large dicts and lists, at its top, but for those under the keys `made`, which are new
        each time. None: nothing can."""
        root = self._root
        if type(root) is not _Container or root.keys is None:
            return None
        fixed = Fixed()
        if not made and sum(type(kid) is _Leaf for kid in root.kids) > _MANY:
            fixed.root = state
        fixed.say(f'{{"v":{VERSION},"tree":{root.head}')
        for i, (key, kid) in enumerate(zip(root.keys, root.kids)):
            fixed.say("," if i else "")
            self._fix_top(kid, state, key, fixed, key not in made)
        fixed.say(f"]{root.meta_text}}}}}")
        return fixed

    def _fix_top(self, kid: Any, state: Any, key: Any, fixed: Fixed, stays: bool) -> None:
        value = state[key]
        if fixed.root is not None and type(kid) is _Leaf:
            fixed.say(kid.body)
            fixed.leaf(state, key)
            return
        if isinstance(kid, _LiveModule) and kid.live.is_of(value):
            fixed.objects[key] = value
            kid.fix(key, fixed, state)
            return
        leaves: list[Any] = []
        kid.refresh(value, leaves, [])
        if stays and type(kid) is _Container and len(leaves) > _MANY:
            fixed.objects[key] = value
            kid.fix(value, (key,), fixed, state)
        else:
            fixed.part(state, functools.partial(_refresh_top, kid, key))

    def _build(self, value: Any, path: Key) -> Any:
        kind = type(value)
        tag = self._leaf_tag(kind)
        if tag:
            return self._build_leaf(value, path, tag)
        if kind in _MAPPINGS or kind is list or kind is tuple:
            return self._build_container(value, path)
        return _Value(self._writer, path)

    def _build_container(self, value: Any, path: Key) -> Any:
        if len(path) > MAX_DEPTH:
            raise InvalidError(
                f"{show(path[:6])}...: nested deeper than {MAX_DEPTH}: does it contain itself?"
            )
        keys, values = (
            (list(value), list(value.values())) if type(value) in _MAPPINGS else (range(len(value)), value)
        )
        kids = [self._build(v, (*path, k)) for k, v in zip(keys, values)]
        if all(type(kid) is _Value for kid in kids):
            return _Value(self._writer, path)
        return _Container(value, path, kids, self._writer)

    def _build_leaf(self, value: Any, path: Key, tag: str) -> _Leaf:
        name, dtype, same_as = name_of(path), self._dtype(value, path), None
        if name in self._names:
            raise InvalidError(
                f"{show(path)} and {show(self._names[name])} would both be named {name!r}: rename one"
            )
        if not name or name.startswith(".cairn/"):
            raise InvalidError(
                f"{show(path)} would be named {name!r}, which no tensor may be: put it under another key"
            )
        self._names[name] = path
        identity = self._identity(value)
        if identity is not None:
            same_as = self._seen.setdefault(identity, len(self.leaves))
            same_as = None if same_as == len(self.leaves) else same_as
        self.leaves.append(Leaf(name if same_as is None else self.leaves[same_as].name, path, tag, same_as))
        self.values.append(value)
        true = "" if dtype is None else f',"d":{_quote(dtype)}'
        return _Leaf(type(value), f'{{"t":"{tag}","n":{_quote(self.leaves[-1].name)}{true}}}')


def _document(out: list[str]) -> str:
    return f'{{"v":{VERSION},"tree":{"".join(out)}}}'


# ---- reading -----------------------------------------------------------------------------------------------


class TensorRef:
    """A tensor or array in a tree that was read: its name in the checkpoint, "tensor" or "ndarray", and its
    true dtype where it is stored as bytes (torch's name, or numpy's typestr)."""

    __slots__ = ("name", "tag", "dtype")

    def __init__(self, name: str, tag: str, dtype: Optional[str]) -> None:
        self.name, self.tag, self.dtype = name, tag, dtype

    def __repr__(self) -> str:
        return f"TensorRef({self.name!r}, {self.tag!r}, {self.dtype!r})"


_TYPESTR = re.compile(r"[<>|=][?biufcSUmMV][0-9]{1,9}(\[[0-9a-zA-Z]{1,8}\])?")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")
_DEVICE = re.compile(r"[a-z]{1,32}(:[0-9]{1,6})?")


class _Reader:
    def __init__(self, what: str, allow_pickle: bool) -> None:
        self.what, self.allow_pickle = what, allow_pickle

    def bad(self, path: Key, why: str) -> CorruptError:
        return CorruptError(f"{self.what}: at {show(path)[:400]}: {why}")

    def node(self, node: Any, path: Key) -> Any:
        kind = type(node)
        if kind in _PLAIN:
            return node
        if kind is not dict:
            raise self.bad(path, "a list without a tag")
        if len(path) > MAX_DEPTH + 1:
            raise self.bad(path[:8], f"nested deeper than {MAX_DEPTH}")
        tag = node.get("t")
        read = _READERS.get(tag) if type(tag) is str else None
        if read is None:
            raise self.bad(path, f"unknown tag {str(tag)[:40]!r}: written by a newer version?")
        try:
            return read(self, node, path)
        except (
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
            OverflowError,
            struct.error,
            binascii.Error,
        ) as e:
            if isinstance(e, (CorruptError, InvalidError)):
                raise
            raise self.bad(path, f"a malformed {tag} ({e})") from None

    def items(self, node: dict[str, Any], field: str, path: Key, keys: Any = None) -> list[Any]:
        values = node[field]
        if type(values) is not list:
            raise self.bad(path, f'"{field}" is no list')
        if set(map(type, values)).issubset(_PLAIN):
            return values
        return [
            self.node(v, (*path, k)) for k, v in zip(keys if keys is not None else range(len(values)), values)
        ]

    def string(self, node: dict[str, Any], field: str) -> str:
        if type(node[field]) is not str:
            raise ValueError(f'"{field}" is no string')
        return node[field]

    # One method for each tag.

    def tensor(self, node: dict[str, Any], path: Key) -> TensorRef:
        dtype = self.string(node, "d") if "d" in node else None
        pattern = _NAME if node["t"] == "tensor" else _TYPESTR
        if dtype is not None and not pattern.fullmatch(dtype):
            raise ValueError("no dtype")
        return TensorRef(self.string(node, "n"), node["t"], dtype)

    def read_dict(self, node: dict[str, Any], path: Key) -> Any:
        keys = self.items(node, "k", path)
        values = self.items(node, "v", path, keys)
        if len(keys) != len(values):
            raise ValueError(f"{len(keys)} keys and {len(values)} values")
        made: Any = _MADE[node["t"]](dict(zip(keys, values)))
        if len(made) != len(keys):
            raise ValueError("a key twice")
        if "m" in node and node["t"] == "odict":
            made._metadata = self.node(node["m"], (*path, "_metadata"))
        return made

    def sequence(self, node: dict[str, Any], path: Key) -> Any:
        return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[node["t"]](
            self.items(node, "v", path)
        )

    def read_int(self, node: dict[str, Any], path: Key) -> int:
        if not re.fullmatch(r"-?[0-9a-f]+", self.string(node, "v")):
            raise ValueError("no digits")
        return int(node["v"], 16)

    def read_float(self, node: dict[str, Any], path: Key) -> float:
        return struct.unpack(">d", bytes.fromhex(self.string(node, "v")))[0]

    def read_bytes(self, node: dict[str, Any], path: Key) -> Union[bytes, bytearray]:
        data = base64.b64decode(self.string(node, "v"), validate=True)
        return data if node["t"] == "bytes" else bytearray(data)

    def read_complex(self, node: dict[str, Any], path: Key) -> complex:
        real, imaginary = self.items(node, "v", path)
        if type(real) is not float or type(imaginary) is not float:
            raise ValueError("two floats are wanted")
        return complex(real, imaginary)

    def torch_value(self, node: dict[str, Any], path: Key) -> Any:
        torch, tag, value = _need("torch", self.what), node["t"], node["v"]
        if tag == "size":
            if type(value) is not list or not all(type(n) is int and 0 <= n <= _MAX_INT for n in value):
                raise ValueError("sizes are wanted")
            return torch.Size(value)
        if type(value) is not str or not (_DEVICE if tag == "device" else _NAME).fullmatch(value):
            raise ValueError(f"no {tag}")
        if tag == "device":
            try:
                return torch.device(value)
            except RuntimeError as e:
                raise ValueError(str(e).splitlines()[0]) from None
        made = vars(torch).get(value)  # getattr() would import modules
        if not isinstance(made, torch.dtype):
            raise ValueError(f"no dtype {value!r} in this torch")
        return made

    def number(self, node: dict[str, Any], path: Key) -> Any:
        numpy, data = _need("numpy", self.what), bytes.fromhex(self.string(node, "v"))
        if not _TYPESTR.fullmatch(self.string(node, "d")) or node["d"][1] == "V":
            raise ValueError("no dtype of a number")
        dtype = numpy.dtype(node["d"])
        if dtype.itemsize != len(data):
            raise ValueError(f"{len(data)} bytes for a {dtype}")
        return numpy.frombuffer(data, dtype)[0] if data else dtype.type()

    def read_pickle(self, node: dict[str, Any], path: Key) -> Any:
        data = base64.b64decode(self.string(node, "v"), validate=True)
        if not self.allow_pickle:
            raise InvalidError(
                f"{self.what}: {show(path)} is a pickle, which runs code when it is read: "
                f"pass allow_pickle=True if you trust who saved this checkpoint"
            )
        try:
            return pickle.loads(data)
        except Exception as e:  # noqa: BLE001 - whatever the object's own code raises
            raise CorruptError(
                f"{self.what}: {show(path)} cannot be unpickled: {type(e).__name__}: {e}"
            ) from e


_READERS: dict[str, Callable[..., Any]] = {
    "tensor": _Reader.tensor,
    "ndarray": _Reader.tensor,
    "dict": _Reader.read_dict,
    "odict": _Reader.read_dict,
    "counter": _Reader.read_dict,
    **dict.fromkeys(("list", "tuple", "set", "frozenset"), _Reader.sequence),
    "int": _Reader.read_int,
    "float": _Reader.read_float,
    "bytes": _Reader.read_bytes,
    "bytearray": _Reader.read_bytes,
    "complex": _Reader.read_complex,
    **dict.fromkeys(("size", "dtype", "device"), _Reader.torch_value),
    "number": _Reader.number,
    "pickle": _Reader.read_pickle,
}


def _need(module: str, what: str) -> Any:
    try:
        return __import__(module)
    except ImportError:
        raise InvalidError(f"{what} has values of {module}: install {module} to read it") from None


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def read(
    document: Union[bytes, bytearray, memoryview], what: str = "tree document", allow_pickle: bool = False
) -> Any:
    """The state dict of a document, with a TensorRef in the place of each tensor.

    Runs no code of the document's choosing; pickles are refused with InvalidError unless allow_pickle. what:
    for messages. Raises CorruptError for anything that is no tree.
    """
    try:
        text = str(document, "utf-8")
        root = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as e:
        raise CorruptError(f"{what}: is no JSON ({e})") from None
    if type(root) is not dict or type(root.get("v")) is not int or "tree" not in root:
        raise CorruptError(f"{what}: is no tree")
    if root["v"] != VERSION:
        raise InvalidError(
            f"{what}: has version {root['v']}, this cairn reads {VERSION}: install a newer one"
        )
    try:
        return _Reader(what, allow_pickle).node(root["tree"], ())
    except RecursionError:
        raise CorruptError(f"{what}: nested too deeply") from None


def leaves_of(tree: Any, path: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Every value of a tree that is no dict, list or tuple, with its path; an empty container counts as a
    value."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from leaves_of(value, (*path, key))
    elif type(tree) in (list, tuple) and tree:
        for key, value in enumerate(tree):
            yield from leaves_of(value, (*path, key))
    else:
        yield path, tree
