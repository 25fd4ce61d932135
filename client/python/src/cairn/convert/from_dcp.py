# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of torch.distributed.checkpoint (DCP) in a directory: .metadata, and .distcp files of
torch.save items."""

from __future__ import annotations

import math
import os
from typing import Any, Dict, List, Optional

import torch

from .. import _torch
from .._tree import name_of
from .boxes import Dims
from .dcp_metadata import Chunk, DcpMetadata, Entry, read_metadata
from .errors import ConvertError
from .files import SourceFile
from .from_torch import is_tensor, item_of
from .saved import Saved, read_saved
from .source import Item, Nothing, Reader, Source
from .trees import TREE, put, tree_document, tree_of


class _Files:
    """The .distcp files, opened when they are needed."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._open: Dict[str, SourceFile] = {}

    def get(self, chunk: Chunk, what: str) -> SourceFile:
        if chunk.file not in self._open:
            self._open[chunk.file] = SourceFile(os.path.join(self._directory, chunk.file))
        file = self._open[chunk.file]
        if chunk.begin + chunk.nbytes > file.size:
            raise ConvertError(
                "corrupt",
                f"{what}: it lies at bytes {chunk.begin} to {chunk.begin + chunk.nbytes} of {file.path}, which "
                f"has {file.size}: it is cut off",
            )
        return file

    def close(self) -> None:
        for file in self._open.values():
            file.close()


class _ChunkReader:
    """A Reader of one chunk of a tensor. Its torch.save is parsed when it is first read, and verified after
    the last."""

    def __init__(self, files: _Files, entry: Entry, chunk: Chunk, checked: bool) -> None:
        self._files, self._entry, self._chunk, self._checked = files, entry, chunk, checked
        self._what = f'"{entry.name}" at {list(chunk.offset)}'
        self._saved: Optional[Saved] = None
        self._reader: Optional[Reader] = None
        self._left = 0

    def _open(self) -> Reader:
        file = self._files.get(self._chunk, self._what)
        self._what = f"{file.path}: {self._what}"
        self._saved = read_saved(file, self._what, self._checked, self._chunk.begin, self._chunk.nbytes)
        tensor = self._saved.value
        if (
            not isinstance(tensor, torch.Tensor)
            or tuple(tensor.shape) != self._chunk.length
            or f"torch.{self._entry.dtype}" != str(tensor.dtype)
        ):
            raise ConvertError(
                "corrupt",
                f"{self._what}: it is not the {self._entry.dtype} of {list(self._chunk.length)} that the metadata "
                "says",
            )
        item = item_of(self._entry.name, tensor, self._saved)
        self._left = item.nbytes
        return item.reader

    def read(self, start: Dims, length: Dims, target: memoryview) -> None:
        if self._reader is None:
            self._reader = self._open()
        self._reader.read(start, length, target)
        self._left -= len(target)
        if self._left <= 0 and self._saved:
            self._saved.finish()
            self._saved = self._reader = None


def _items_of(entry: Entry, files: _Files, checked: bool) -> List[Item]:
    torch_dtype = getattr(torch, str(entry.dtype))
    for c in entry.chunks:  # before anything is planned by sizes that only the metadata says
        file = files.get(c, f'"{entry.name}"')
        if math.prod(c.length) * torch_dtype.itemsize > c.nbytes:
            raise ConvertError(
                "corrupt",
                f'{file.path}: "{entry.name}" at {list(c.offset)}: {c.nbytes} bytes are no {entry.dtype} of '
                f"{list(c.length)}",
            )
    dtype = _torch.dtype_name(torch_dtype)
    tail: Dims = () if dtype else (torch_dtype.itemsize,)
    dtype = dtype or "BYTES"
    shape, zero = entry.shape + tail, (0,) * len(tail)
    if not entry.chunks:  # no elements
        return [Item(entry.name, dtype, shape, (0,) * len(shape), shape, Nothing())]
    return [
        Item(
            entry.name, dtype, shape, c.offset + zero, c.length + tail, _ChunkReader(files, entry, c, checked)
        )
        for c in entry.chunks
    ]


def _stand_in(entry: Entry, what: str) -> torch.Tensor:
    try:
        return torch.empty(entry.shape, dtype=getattr(torch, str(entry.dtype)), device="meta")
    except RuntimeError as error:  # its size overflows
        raise ConvertError(
            "corrupt", f'{what}: "{entry.name}": no {entry.dtype} of {list(entry.shape)} can be: {error}'
        ) from None


def _nested(metadata: DcpMetadata, values: Dict[str, Any], what: str) -> Dict[Any, Any]:
    state: Dict[Any, Any] = {}
    for name, value in values.items():
        path = metadata.paths.get(name) or (name,)
        put(state, path if name_of(path) == name else (name,), value, f'{what}: "{name}"')
    return state


class _Values:
    """Everything of the checkpoint that is no tensor, and the tensors that such values have in them."""

    def __init__(self, files: _Files, checked: bool) -> None:
        self._files, self._checked = files, checked
        self.saved: List[Saved] = []
        self.owner: Dict[int, Saved] = {}  # of tensors, by their id

    def read(self, entry: Entry) -> Any:
        chunk, what = entry.chunks[0], f'"{entry.name}"'
        file = self._files.get(chunk, what)
        saved = read_saved(file, f"{file.path}: {what}", self._checked, chunk.begin, chunk.nbytes)
        self.saved.append(saved)
        self._own(saved.value, saved)
        return saved.value

    def _own(self, value: Any, saved: Saved) -> None:
        if isinstance(value, torch.Tensor):
            self.owner[id(value)] = saved
        elif isinstance(value, dict):
            for item in value.values():
                self._own(item, saved)
        elif isinstance(value, (list, tuple)):
            for item in value:
                self._own(item, saved)

    def identity(self, tensor: Any) -> Any:
        saved = self.owner.get(id(tensor))
        return saved and (id(saved), saved.place_of(tensor))

    def finish(self) -> None:
        for saved in self.saved:
            saved.finish()


def open_dcp(path: str, checked: bool = True) -> Source:
    """Opens a DCP directory. Errors as open_torch()'s; the .metadata pickle is read with an allow-list."""
    what = os.path.join(path, ".metadata")
    metadata = read_metadata(what)
    files = _Files(path)
    try:
        return _open(metadata, files, what, checked)
    except BaseException:
        files.close()
        raise


def _open(metadata: DcpMetadata, files: _Files, what: str, checked: bool) -> Source:
    held = _Values(files, checked)
    values: Dict[str, Any] = {}
    for name, entry in metadata.entries.items():
        if entry.dtype is None:
            values[name] = held.read(entry)
        else:
            values[name] = _stand_in(entry, what)
    state = _nested(metadata, values, what)
    tree = tree_of(state, is_tensor, held.identity, lambda t: _torch.true_name(t.dtype))
    items: List[Item] = []
    for leaf, tensor in zip(tree.leaves, tree.values):
        if leaf.same_as is not None:
            continue
        if id(tensor) in held.owner:
            items.append(item_of(leaf.name, tensor, held.owner[id(tensor)]))
        else:
            items += _items_of(metadata.entries[leaf.name], files, checked)
    return Source(items, {TREE + "0": tree_document(tree)}, finish=held.finish, close=files.close)
