# SPDX-License-Identifier: Apache-2.0
"""What frameworks put into their state beside tensors, where Cairn's own tree document has no form for it.

encode() turns what is in _TYPES, enums and dicts of other classes into plain values, decode() turns them
back; neither imports anything nor runs code of the checkpoint's choosing. Anything else is left as it is: a
lambda or an object of a user's class is then refused by the save, which names the path to it.

A tensor of at most SMALL bytes becomes a value too: callbacks keep 0-d scores under keys that change from
save to save, and a tensor by a new name in every save would make a new layout of each.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import pathlib
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch

_MARK = "__cairn_type__"
SMALL = 4096  # bytes


def encode(value: Any, small: int = SMALL) -> Any:
    """`value` with what is not plain marked and converted; containers are new, all else is shared.

    small: tensors of at most so many bytes become values.
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, str, bytes):
        return value
    if isinstance(value, enum.Enum):  # before int and str, which an enum may also be
        return _marked("enum", [kind.__module__, kind.__qualname__, value.name, encode(value.value, small)])
    if isinstance(value, torch.Tensor):
        return _encode_tensor(value, small)
    if kind in _NAMES:
        return _marked(_NAMES[kind], encode(_TYPES[_NAMES[kind]][1](value), small))
    if isinstance(value, pathlib.PurePath):
        return _marked("path", str(value))
    if kind is collections.OrderedDict:
        made = collections.OrderedDict((key, encode(each, small)) for key, each in value.items())
        return _with_metadata(made, value)
    if kind is collections.Counter:
        return value  # the tree knows it
    if isinstance(value, dict):  # other classes of dict come back as dict
        encoded = {key: encode(each, small) for key, each in value.items()}
        return _marked("dict", list(encoded.items())) if _MARK in encoded else encoded
    if kind in (list, tuple):
        return kind(encode(each, small) for each in value)
    return value


def decode(value: Any) -> Any:
    """The inverse of encode(). Errors: ValueError for a kind that this version does not know."""
    if isinstance(value, dict):
        if _MARK in value:
            return _decode_marked(value[_MARK], value["value"])
        return _with_metadata(type(value)({key: decode(each) for key, each in value.items()}), value)
    if type(value) in (list, tuple):
        return type(value)(decode(each) for each in value)
    return value


def _with_metadata(made: Any, like: Any) -> Any:
    """What Module.state_dict() hangs on its OrderedDict goes with it."""
    if hasattr(like, "_metadata"):
        made._metadata = like._metadata
    return made


def _marked(name: str, value: Any) -> dict[str, Any]:
    return {_MARK: name, "value": value}


def _encode_tensor(value: torch.Tensor, small: int) -> Any:
    plain = type(value) in (torch.Tensor, torch.nn.Parameter) and value.layout is torch.strided
    if not plain or value.is_quantized or value.numel() * value.element_size() > small:
        return value
    flat = value.detach().cpu().contiguous().reshape(-1)
    raw = bytes(flat.view(torch.uint8).tolist()) if flat.numel() else b""
    return _marked("tensor", [value.dtype, list(value.shape), raw])


def _decode_tensor(dtype: torch.dtype, shape: list[int], raw: bytes) -> torch.Tensor:
    if not raw:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape)


def _decode_enum(module: str, name: str, member: str, value: Any) -> Any:
    """The member, if its class is imported already: a checkpoint must not decide what is imported."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if isinstance(found, enum.EnumMeta) and member in found.__members__:
        return found[member]
    warnings.warn(
        f"{module}.{name} is not imported: its member {member} is given back as its value", RuntimeWarning
    )
    return decode(value)


def _decode_marked(name: str, value: Any) -> Any:
    if name == "dict":
        return {key: decode(each) for key, each in value}
    if name == "tensor":
        return _decode_tensor(*value)
    if name == "enum":
        return _decode_enum(*value)
    if name not in _TYPES:
        raise ValueError(
            f"the state holds a value of kind {name!r}, which this version of cairn does not know"
        )
    return _TYPES[name][2](decode(value))


_TYPES: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "deque": (collections.deque, lambda v: [list(v), v.maxlen], lambda v: collections.deque(v[0], v[1])),
    "namespace": (argparse.Namespace, vars, lambda v: argparse.Namespace(**v)),
    "range": (range, lambda v: [v.start, v.stop, v.step], lambda v: range(*v)),
    "timedelta": (
        datetime.timedelta,
        lambda v: [v.days, v.seconds, v.microseconds],
        lambda v: datetime.timedelta(*v),
    ),
    "datetime": (datetime.datetime, lambda v: v.isoformat(), datetime.datetime.fromisoformat),
    "path": (pathlib.PurePath, str, pathlib.Path),  # and its subclasses
}
_NAMES = {row[0]: name for name, row in _TYPES.items()}
