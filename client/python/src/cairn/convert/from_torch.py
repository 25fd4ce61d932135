# SPDX-License-Identifier: Apache-2.0
"""torch.save files, taken in tensor by tensor; only what torch.load(weights_only=True) accepts."""

from __future__ import annotations

from typing import Any

import torch

from .. import _torch
from .errors import ConvertError
from .files import SourceFile
from .saved import Saved, read_saved
from .source import Item, Reader, Source
from .trees import TREE, tree_document, tree_of

PLAIN = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


def is_tensor(kind: type) -> bool:
    """Is a value of this type a tensor? DTensors and other subclasses are, too: item_of() refuses them by
    name."""
    return issubclass(kind, torch.Tensor)


def item_of(name: str, tensor: Any, saved: Saved) -> Item:
    """A whole tensor of a saved structure as what is imported."""
    if type(tensor) not in PLAIN:
        raise ConvertError(
            "unsupported",
            f'{saved.what}: "{name}" is a {type(tensor).__name__}: only plain tensors can be imported '
            "from a torch.save file (save its full_tensor(), or with torch.distributed.checkpoint)",
        )
    dtype, shape = _torch.dtype_name(tensor.dtype), tuple(tensor.shape)
    reader: Reader = saved.reader_of(tensor, as_bytes=dtype is None)
    if dtype is None:
        dtype, shape = "BYTES", shape + (tensor.element_size(),)
    return Item(name, dtype, shape, (0,) * len(shape), shape, reader)


def open_torch(path: str, checked: bool = True) -> Source:
    """Opens a torch.save file. checked: what is read is compared with the CRC-32 of its records.

    Errors: ConvertError "corrupt", "unsupported"; cairn.InvalidError names a value that no tree can hold;
    OSError.
    """
    file = SourceFile(path)
    try:
        saved = read_saved(file, path, checked)
        tree = tree_of(saved.value, is_tensor, saved.place_of, lambda t: _torch.true_name(t.dtype))
        items = [
            item_of(leaf.name, tensor, saved)
            for leaf, tensor in zip(tree.leaves, tree.values)
            if leaf.same_as is None
        ]
    except BaseException:
        file.close()
        raise
    return Source(items, {TREE + "0": tree_document(tree)}, finish=saved.finish, close=file.close)
