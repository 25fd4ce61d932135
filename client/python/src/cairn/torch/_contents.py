# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint holds, as torch.distributed.checkpoint sees it: from Cairn's tensor tables and, where they are, the
JSON documents of StorageWriter (".cairn/dcp/<rank>") or of cairn.Checkpointer (".cairn/tree/<rank>"). No pickle is read."""
from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Mapping
from typing import Any, Optional

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata, ChunkStorageMetadata, Metadata, TensorProperties, TensorStorageMetadata,
)

from .. import _tree
from .._torch import dtype_of
from ..errors import CorruptError, InvalidError
from ..session import Restore, Slice
from . import _document
from ._document import Document, Path
from ._memory import content_of

_TREES = ".cairn/tree/"


@dataclasses.dataclass
class Tensor:
    """A tensor of the checkpoint. name: its own in Cairn; shape: as stored; dtype: torch's, true one; slices: each piece
    once."""

    name: str
    stored_dtype: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    slices: list[Slice]

    @property
    def extra(self) -> int:
        """Dimensions that are stored beyond the tensor's own: 1 where elements are stored as bytes."""
        return 1 if self.stored_dtype == "BYTES" and self.dtype != torch.uint8 else 0

    def own(self, dims: tuple[int, ...]) -> torch.Size:
        """Without the extra dimension."""
        return torch.Size(dims[: len(dims) - self.extra])


@dataclasses.dataclass
class Stream:
    """A byte stream: where it is stored, or what it holds."""

    slice: Optional[Slice] = None
    length: int = 0
    value: Any = None


class Contents:
    """tensors and streams of a checkpoint by their names in the state dict, and the path of each.

    rank: whose pieces are taken where several ranks saved a tensor of one name in different shapes, and whose tree is read.
    allow_pickle: for values in a Checkpointer's tree that are pickles.
    """

    def __init__(self, restore: Restore, rank: int, timeout: float, allow_pickle: bool) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.streams: dict[str, Stream] = {}
        self.paths: Optional[dict[str, Path]] = None
        self.requires_grad: set[str] = set()
        by_name: dict[str, list[Slice]] = {}
        for piece in restore.slices():
            by_name.setdefault(piece.name, []).append(piece)
        own = {name: pieces for name, pieces in by_name.items() if not name.startswith(_document.RESERVED)}
        self._what = f"step {restore.step}"
        reader = _Documents(restore, by_name, timeout)
        documents = reader.read(_document.PREFIX, reader.ranks(_document.PREFIX))
        if documents:
            self._take_documents(documents, own)
        else:
            self._take_trees(reader, own, rank, allow_pickle)

    def _take_documents(self, documents: dict[int, bytes], own: dict[str, list[Slice]]) -> None:
        all_of_them = Document()
        for rank, data in documents.items():
            document = _document.decode(data, f"{self._what}: {_document.name_of(rank)}")
            for name, length in document.bytes.items():
                self.streams[name] = self._stream(own.get(name, ()), name, rank, length)
            all_of_them.merge(document)
        self.paths, self.requires_grad = all_of_them.paths, all_of_them.requires_grad
        for name, pieces in own.items():
            if name not in self.streams:
                self.tensors[name] = self._tensor(name, pieces, all_of_them.dtypes.get(name), 0)

    def _stream(self, pieces: Any, name: str, rank: int, length: int) -> Stream:
        for piece in pieces:
            if piece.rank == rank and piece.dtype == "BYTES" and len(piece.shape) == 1 and piece.length[0] >= length:
                return Stream(piece, length)
        raise CorruptError(f'{self._what}: rank {rank} says that it stored {length} bytes as "{name}", and they are not there')

    def _take_trees(self, reader: "_Documents", own: dict[str, list[Slice]], rank: int, allow_pickle: bool) -> None:
        """A checkpoint of cairn.Checkpointer: this rank's tree, or the first; the others' where they know tensors that it does
        not. Without a tree, of a program in another language: names are all there is."""
        ranks, self.paths = reader.ranks(_TREES), {}
        unknown = set(own)
        first = rank if rank in ranks else min(ranks, default=rank)
        for of_rank in (first, *(r for r in ranks if r != first)) if ranks else ():
            data = reader.read(_TREES, [of_rank])[of_rank]
            self._take_tree(_tree.read(data, f"{self._what}: {_TREES}{of_rank}", allow_pickle), own, unknown, rank)
            if not unknown:
                return
        for name in sorted(unknown):
            if name not in self.tensors:
                self.tensors[name], self.paths[name] = self._tensor(name, own[name], None, rank), (name,)

    def _take_tree(self, tree: Any, own: dict[str, list[Slice]], unknown: set[str], rank: int) -> None:
        """Notes what no tree before has named."""
        assert self.paths is not None
        for path, value in _values(tree, ()):
            name = ".".join(map(str, path))
            if name in self.paths:
                continue
            self.paths[name] = path
            if not isinstance(value, _tree.TensorRef):
                self.streams[name] = Stream(value=value)
                continue
            if value.name not in own:
                raise CorruptError(f'{self._what}: the tree refers to tensor "{value.name}", which nobody saved')
            true = None if value.dtype is None else dtype_of(value.dtype)
            self.tensors[name] = self._tensor(value.name, own[value.name], true, rank)
            unknown.discard(value.name)

    def _tensor(self, name: str, pieces: list[Slice], true: Optional[torch.dtype], rank: int) -> Tensor:
        first = next((p for p in pieces if p.rank == rank), pieces[0])
        unique = {(p.offset, p.length): p for p in pieces if (p.dtype, p.shape) == (first.dtype, first.shape)}
        dtype = true or dtype_of(first.dtype)
        if dtype is None:
            raise InvalidError(f'{self._what}: tensor "{name}" has dtype {first.dtype}, which torch {torch.__version__} has not')
        if true is not None and (first.dtype != "BYTES" or first.shape[-1:] != (_item_size(true),)):
            raise CorruptError(f'{self._what}: tensor "{name}" is said to be {true}, and is stored as {first.dtype} '
                               f"{list(first.shape)}")
        return Tensor(name, first.dtype, first.shape, dtype, list(unique.values()))

    def rename(self, names: Mapping[str, str]) -> None:
        """Shows what is stored under a value of the mapping, and everything below it, under its key."""
        known = [*self.tensors, *self.streams]
        for new, old in names.items():
            found = [name for name in known if name == old or name.startswith(f"{old}.")]
            if not found:
                raise InvalidError(f'{self._what}: rename "{new}" to "{old}": the checkpoint has nothing of that name')
            for name in found:
                self._show_as(name, new + name[len(old) :])

    def _show_as(self, name: str, new: str) -> None:
        if new in self.tensors or new in self.streams:
            raise InvalidError(f'{self._what}: "{name}" cannot be called "{new}": the checkpoint has something of that name')
        for entries in (self.tensors, self.streams):
            if name in entries:
                entries[new] = entries.pop(name)  # type: ignore[index]
        if self.paths is not None:
            self.paths.pop(name, None)
            self.paths[new] = tuple(new.split("."))
        if name in self.requires_grad:
            self.requires_grad.add(new)

    def metadata(self) -> Metadata:
        """As the planners want it."""
        entries: dict[str, Any] = {name: self._tensor_metadata(name, t) for name, t in self.tensors.items()}
        entries.update((name, BytesStorageMetadata()) for name in self.streams)
        return Metadata(state_dict_metadata=entries, planner_data=self.paths)

    def _tensor_metadata(self, name: str, tensor: Tensor) -> TensorStorageMetadata:
        chunks = [ChunkStorageMetadata(tensor.own(p.offset), tensor.own(p.length)) for p in tensor.slices]
        properties = TensorProperties(dtype=tensor.dtype, requires_grad=name in self.requires_grad)
        return TensorStorageMetadata(properties, tensor.own(tensor.shape), chunks)


def _item_size(dtype: torch.dtype) -> int:
    return torch.empty((), dtype=dtype).element_size()


def _values(node: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """The values of a tree under the names that the planners would give them: mappings are walked through, lists only where
    they hold tensors or mappings."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _values(value, (*path, str(key)))
    elif isinstance(node, (list, tuple)) and any(isinstance(v, _tree.TensorRef) for _, v in _tree.leaves_of(node)):
        for i, value in enumerate(node):
            yield from _values(value, (*path, i))
    elif path:
        yield path, node


class _Documents:
    """The documents in a checkpoint."""

    def __init__(self, restore: Restore, by_name: dict[str, list[Slice]], timeout: float) -> None:
        self.restore, self.by_name, self.timeout = restore, by_name, timeout

    def ranks(self, prefix: str) -> list[int]:
        """Of which ranks there are documents."""
        texts = (name.removeprefix(prefix) for name in self.by_name if name.startswith(prefix))
        return sorted(int(text) for text in texts if text.isdecimal() and text.isascii())

    def read(self, prefix: str, ranks: list[int]) -> dict[int, bytes]:
        """Those of the given ranks."""
        found: dict[int, torch.Tensor] = {}
        for rank in ranks:
            piece = self.by_name[f"{prefix}{rank}"][0]
            found[rank] = torch.empty(piece.bytes, dtype=torch.uint8)
            self.restore.add_slice(piece.index, found[rank].data_ptr(), keep=found[rank])
        if found:
            self.restore.run(self.timeout)
        return {rank: content_of(tensor) for rank, tensor in found.items()}


def serialised(value: Any) -> io.BytesIO:
    """A value as the planners' load_bytes() expects it."""
    stream = io.BytesIO()
    torch.save(value, stream)
    stream.seek(0)
    return stream
