# SPDX-License-Identifier: Apache-2.0
"""What cairn.torch.StorageWriter notes beside the tensors that torch.distributed.checkpoint saves through it,
in the BYTES tensors ".cairn/dcp/<rank>" (docs/python-dcp.md): where names stand in the state dict, which are
byte streams, true dtypes.
"""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import dataclass
from typing import Any, Dict, Tuple

from .._tree import TensorRef
from .errors import ConvertError

DCP = ".cairn/dcp/"


@dataclass(frozen=True)
class Stream:
    """What DCP saved as bytes: a torch.save of a value."""

    name: str
    data: bytes

    def value(self) -> Any:
        """The value, without running code. Errors: ConvertError "unsupported" where that cannot be."""
        import torch

        try:
            return torch.load(io.BytesIO(self.data), map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
            raise ConvertError(
                "unsupported",
                f'"{self.name}" is no plain value, and nothing of it is executed '
                f"({str(error).splitlines()[0]}): --format dcp gives it back as it is",
            ) from None


@dataclass(frozen=True)
class Notes:
    """All ranks' documents together. paths: None where names are the keys themselves."""

    paths: Dict[str, Tuple[Any, ...]]
    streams: Dict[str, int]  # name -> bytes
    dtypes: Dict[str, str]  # torch's names


def read_notes(documents: Dict[str, bytes]) -> Notes:
    """Errors: ConvertError "corrupt" names the document."""
    notes = Notes({}, {}, {})
    for name, data in documents.items():
        try:
            body = json.loads(data)
            if body["v"] != 1:
                raise ConvertError(
                    "unsupported", f"{name} has version {body['v']}, this cairn reads 1: install a newer one"
                )
            notes.paths.update({str(n): tuple(p) for n, p in (body["paths"] or {}).items()})
            notes.streams.update({str(n): int(length) for n, length in body["bytes"].items()})
            notes.dtypes.update({str(n): str(d) for n, d in body["dtypes"].items()})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConvertError("corrupt", f"{name} is no document of this kind: {error!r}") from None
    return notes


def leaf_of(name: str, notes: Notes, data: bytes) -> Any:
    """What stands for a saved tensor in the state dict; data: of a stream."""
    if name in notes.streams:
        if len(data) < notes.streams[name]:
            raise ConvertError(
                "corrupt", f'"{name}" has {len(data)} bytes, {notes.streams[name]} are said to be there'
            )
        return Stream(name, data[: notes.streams[name]])
    return TensorRef(name, "tensor", notes.dtypes.get(name))
