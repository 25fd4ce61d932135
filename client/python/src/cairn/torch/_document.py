# SPDX-License-Identifier: Apache-2.0
"""What a reader needs beyond the tensor tables, as JSON in the BYTES tensor ".cairn/dcp/<rank>" (docs/python-dcp.md):

    {"v": 1, "paths": {"model.a": ["model", "a"]} or null, "bytes": {"epoch": 1261}, "dtypes": {"z": "complex128"},
     "requires_grad": ["model.a"]}

paths: where in the state dict a name stands, null where names are the keys themselves. bytes: which names of this rank are
byte streams, and how long they are (their tensors may be longer). dtypes: of tensors that are stored as bytes. A name is
in the document of one rank only: the one that stores its first element, or its stream.
"""
from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Optional, Union

import torch

from ..errors import CorruptError, InvalidError

PREFIX = ".cairn/dcp/"
RESERVED = ".cairn/"
_PAGE = 4096
_VERSION = 1

Path = tuple[Union[str, int], ...]


def name_of(rank: int) -> str:
    return f"{PREFIX}{rank}"


@dataclasses.dataclass
class Document:
    """One rank's, or what those of all ranks say together."""

    paths: Optional[dict[str, Path]] = None
    bytes: dict[str, int] = dataclasses.field(default_factory=dict)
    dtypes: dict[str, torch.dtype] = dataclasses.field(default_factory=dict)
    requires_grad: set[str] = dataclasses.field(default_factory=set)

    def note_path(self, name: str, planner_data: Any) -> None:
        """Takes the path of a name from the planner's mapping, if it has one."""
        if planner_data is None:
            return
        path = planner_data.get(name) if isinstance(planner_data, Mapping) else None
        if not isinstance(path, tuple) or not all(type(key) in (str, int) for key in path):
            raise InvalidError(f'the planner says of "{name}" {path!r}, where a tuple of keys and positions is stored: other '
                               f"planner_data would need a pickle, which Cairn does not write")
        if self.paths is None:
            self.paths = {}
        self.paths[name] = path

    def encode(self) -> bytes:
        """As JSON."""
        body = {
            "v": _VERSION,
            "paths": self.paths,
            "bytes": self.bytes,
            "dtypes": {name: str(dtype).removeprefix("torch.") for name, dtype in self.dtypes.items()},
            "requires_grad": sorted(self.requires_grad),
        }
        return json.dumps(body, separators=(",", ":")).encode()

    def merge(self, other: "Document") -> None:
        if other.paths is not None:
            self.paths = {**(self.paths or {}), **other.paths}
        self.bytes.update(other.bytes)
        self.dtypes.update(other.dtypes)
        self.requires_grad |= other.requires_grad


def room_for(length: int, before: int = 0) -> int:
    """Bytes to reserve for a document: with room to grow, and never less than before, so that layouts stay the same."""
    return max(before, -(-(length + length // 8) // _PAGE) * _PAGE)


def decode(data: bytes, what: str) -> Document:
    """Reads one; it builds plain values only. Raises CorruptError for anything else."""
    try:
        body = json.loads(data)
        if body["v"] != _VERSION:
            raise InvalidError(f"{what} has version {body['v']}, this cairn reads {_VERSION}: install a newer one")
        paths = body["paths"]
        return Document(
            None if paths is None else {_text(name): _path(path) for name, path in paths.items()},
            {_text(name): _length(length) for name, length in body["bytes"].items()},
            {_text(name): dtype_of(text) for name, text in body["dtypes"].items()},
            {_text(name) for name in body["requires_grad"]},
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        if isinstance(e, InvalidError):
            raise
        raise CorruptError(f"{what} is no document of this kind ({type(e).__name__}: {e})") from None


def dtype_of(name: object) -> torch.dtype:
    """torch's dtype of this name."""
    dtype = getattr(torch, _text(name), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name!r} is no dtype of this torch ({torch.__version__})")
    return dtype


def _text(value: object) -> str:
    if type(value) is not str:
        raise ValueError(f"{value!r} is no name")
    return value


def _path(value: object) -> Path:
    if type(value) is not list or not value or not all(type(key) in (str, int) for key in value):
        raise ValueError("a path is a list of keys and positions")
    if any(type(key) is int and not 0 <= key < 2**31 for key in value):
        raise ValueError("a position in a list is not negative")
    return tuple(value)


def _length(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no length")
    return value
