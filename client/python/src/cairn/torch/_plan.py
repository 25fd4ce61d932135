# SPDX-License-Identifier: Apache-2.0
"""Items of a save plan: what they say about names, places and paths."""
from __future__ import annotations

import torch
from torch.distributed.checkpoint.planner import SavePlan, WriteItem

from .._torch import true_name
from ..errors import InvalidError
from . import _document
from ._document import Document


def check_name(name: str) -> str:
    """Refuses names that are Cairn's own."""
    if name.startswith(_document.RESERVED):
        raise InvalidError(f'"{name}": names that begin with {_document.RESERVED} are Cairn\'s own; choose another key')
    return name


def note_bytes(item: WriteItem, plan: SavePlan, document: Document, length: int) -> None:
    """A byte stream goes into the document with its length and its path."""
    document.bytes[item.index.fqn] = length
    document.note_path(item.index.fqn, plan.planner_data)


def note_tensor(item: WriteItem, tensor: torch.Tensor, plan: SavePlan, document: Document) -> tuple[torch.Size, torch.Size]:
    """The whole's sizes and where this piece begins in it. The piece that begins the whole speaks for it in the document."""
    data, name = item.tensor_data, item.index.fqn
    if data is None or data.chunk is None:
        raise InvalidError(f'the plan gives no place for tensor "{name}"')
    if tuple(tensor.shape) != tuple(data.chunk.sizes):
        raise InvalidError(f'the planner gives {list(tensor.shape)} for tensor "{name}", where the plan has '
                           f"{list(data.chunk.sizes)}")
    if not any(data.chunk.offsets):
        document.note_path(name, plan.planner_data)
        if true_name(tensor.dtype):
            document.dtypes[name] = tensor.dtype
        if data.properties.requires_grad:
            document.requires_grad.add(name)
    return data.size, data.chunk.offsets
