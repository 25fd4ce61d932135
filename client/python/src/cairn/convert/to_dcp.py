# SPDX-License-Identifier: Apache-2.0
"""A directory as torch.distributed.checkpoint (DCP) writes it: any world size loads it with
dcp.load(state_dict, storage_reader=FileSystemReader(directory)).

Tensors are cut along dimension 0 into chunks, each an item of its own, so that neither this nor the loader
needs more than a chunk at a time. The .metadata comes last: without it there is no checkpoint.
"""

from __future__ import annotations

import os
import pickle
import uuid
from typing import Any, Dict, List, Optional, Tuple

import torch
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata, ChunkStorageMetadata, Metadata, MetadataIndex, StorageMeta, TensorProperties, TensorStorageMetadata,
)  # fmt: skip

from .._tree import TensorRef
from .boxes import Dims, cut
from .checkpoint import Checkpoint, Entry, Pump, tensor_kind
from .dcp_documents import Stream
from .errors import ConvertError
from .files import NewFile
from .progress import Progress
from .to_torch import plain
from .trees import map_leaves

CHUNK = 64 << 20  # bytes
FILE = 4 << 30  # bytes, about


class _Stream:
    """The end of a new file, for torch.save."""

    def __init__(self, file: NewFile) -> None:
        self.file, self.at = file, 0
        self.error: Optional[OSError] = None  # torch's writer of zip files hides it

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        try:
            self.file.write_at(view, self.at)
        except OSError as error:
            self.error = error
            raise
        self.at += len(view)
        return len(view)

    def flush(self) -> None:
        """Nothing is held back."""


class _Files:
    """__0_0.distcp, __0_1.distcp, ...: each gets its name when it is full."""

    def __init__(self, directory: str, force: bool) -> None:
        self._directory, self._force = directory, force
        self._stream: Optional[_Stream] = None
        self.done: List[Tuple[str, int]] = []

    def _name(self) -> str:
        return f"__0_{len(self.done)}.distcp"

    def put(self, value: Any) -> _StorageInfo:
        """Appends one item as torch.save has it."""
        if self._stream is None:
            self._stream = _Stream(NewFile(os.path.join(self._directory, self._name()), self._force))
        begin = self._stream.at
        if isinstance(value, Stream):  # as it was
            self._stream.write(value.data)
        else:
            self._save(value, self._stream)
        info = _StorageInfo(self._name(), begin, self._stream.at - begin)
        if self._stream.at >= FILE:
            self.finish()
        return info

    @staticmethod
    def _save(value: Any, stream: _Stream) -> None:
        try:
            torch.save(value, stream)  # type: ignore[arg-type]  # write() is all it needs
        except RuntimeError as error:
            raise (stream.error or error) from None

    def finish(self) -> None:
        """Gives the open file its name."""
        if self._stream is not None:
            path, size = self._stream.file.path, self._stream.file.finish()
            self.done.append((path, size))
            self._stream = None

    def close(self) -> None:
        if self._stream is not None:
            self._stream.file.__exit__()


class _Writer:
    """Collects what the metadata says while items are written."""

    def __init__(self, checkpoint: Checkpoint, files: _Files, pump: Pump) -> None:
        self._checkpoint, self._files, self._pump = checkpoint, files, pump
        self.entries: Dict[str, Any] = {}
        self.storage: Dict[MetadataIndex, _StorageInfo] = {}

    def value(self, name: str, value: Any) -> None:
        self.entries[name] = BytesStorageMetadata()
        self.storage[MetadataIndex(name)] = self._files.put(value)

    def tensor(self, name: str, ref: TensorRef) -> None:
        entry = self._checkpoint.entry(ref.name)
        dtype, shape = tensor_kind(entry, ref)
        chunks = []
        for i, (start, length) in enumerate(cut(shape, dtype.itemsize, CHUNK)):
            chunks.append(ChunkStorageMetadata(torch.Size(start), torch.Size(length)))
            index = MetadataIndex(name, torch.Size(start), i)
            self._chunk(entry, start, length, dtype, index)
        self.entries[name] = TensorStorageMetadata(TensorProperties(dtype), torch.Size(shape), chunks)

    def _chunk(
        self, entry: Entry, start: Dims, length: Dims, dtype: torch.dtype, index: MetadataIndex
    ) -> None:
        def write(data: memoryview) -> None:
            made = torch.empty(length, dtype=dtype)
            if len(data):
                made.view(-1).view(torch.uint8).copy_(torch.frombuffer(data, dtype=torch.uint8))
            self.storage[index] = self._files.put(made)

        tail = entry.shape[len(length) :]  # of dtypes that are stored as bytes
        self._pump.add(entry, start + (0,) * len(tail), length + tail, write)


def _flatten(state: Any) -> Tuple[Dict[str, Any], Any]:
    """Names and paths as DCP's planner makes them. Its own function does it: tensors are those of the meta
    device."""
    refs: Dict[int, TensorRef] = {}

    def leaf(value: Any) -> Any:
        if not isinstance(value, TensorRef):
            return plain(value)
        stand_in = torch.empty(0, device="meta")
        refs[id(stand_in)] = value
        keep.append(stand_in)
        return stand_in

    keep: List[Any] = []
    if not isinstance(state, dict):
        raise ConvertError(
            "unsupported", f"the state that was saved is a {type(state).__name__}: DCP has dicts only"
        )
    try:
        found, paths = flatten_state_dict(map_leaves(state, leaf))
    except ValueError as error:
        raise ConvertError("exists", f"DCP cannot name everything in it: {error}") from None
    return {name: _back(value, refs) for name, value in found.items()}, paths


def _back(value: Any, refs: Dict[int, TensorRef]) -> Any:
    return map_leaves(value, lambda v: refs.get(id(v), v))


def _tensors_within(value: Any) -> List[TensorRef]:
    found: List[TensorRef] = []
    map_leaves(value, lambda v: found.append(v) if isinstance(v, TensorRef) else None)
    return found


def _materialised(checkpoint: Checkpoint, value: Any) -> Any:
    """Tensors within a value that DCP stores as one item (a tuple): they are read whole."""

    def leaf(v: Any) -> Any:
        if not isinstance(v, TensorRef):
            return v
        entry = checkpoint.entry(v.name)
        dtype, shape = tensor_kind(entry, v)
        made = torch.empty(shape, dtype=dtype)
        if made.numel():
            made.view(-1).view(torch.uint8).copy_(
                torch.frombuffer(checkpoint.read(v.name), dtype=torch.uint8)
            )
        return made

    return map_leaves(value, leaf)


def _write_metadata(directory: str, writer: _Writer, paths: Any, force: bool) -> Tuple[str, int]:
    metadata = Metadata(
        writer.entries, paths, writer.storage, StorageMeta(save_id=str(uuid.uuid4())), CURRENT_DCP_VERSION
    )
    path = os.path.join(directory, ".metadata")
    with NewFile(path, force) as file:
        file.write_at(memoryview(pickle.dumps(metadata)), 0)
        return path, file.finish()


def _clear(directory: str, force: bool) -> None:
    """What an earlier checkpoint left is not mixed with this one."""
    old = os.path.join(directory, ".metadata")
    if os.path.exists(old):
        if not force:
            raise ConvertError("exists", f"{old} is there already (--force overwrites it)")
        os.unlink(old)


def write_dcp(
    checkpoint: Checkpoint, state: Any, directory: str, force: bool, quiet: bool
) -> List[Tuple[str, int]]:
    """Writes a state dict (with TensorRefs) as a DCP checkpoint. Returns the files and their sizes in bytes.

    Memory is bounded by a few CHUNKs. Errors: ConvertError, cairn.Error, OSError; then there is no .metadata.
    """
    values, paths = _flatten(state)
    _clear(directory, force)
    progress = Progress(
        sum(checkpoint.entry(v.name).nbytes for v in values.values() if isinstance(v, TensorRef)), quiet
    )
    files = _Files(directory, force)
    pump = Pump(checkpoint, CHUNK, progress)
    writer = _Writer(checkpoint, files, pump)
    try:
        for name, value in values.items():
            if isinstance(value, TensorRef):
                writer.tensor(name, value)
            else:
                writer.value(name, _materialised(checkpoint, value) if _tensors_within(value) else value)
        pump.flush()
        files.finish()
        return [*files.done, _write_metadata(directory, writer, paths, force)]
    finally:
        files.close()
        progress.close()
