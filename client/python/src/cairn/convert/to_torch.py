# SPDX-License-Identifier: Apache-2.0
"""torch.save files, written without ever holding a tensor: torch writes the skeleton of fake tensors, with
room for their bytes, and the bytes are then put into it piece by piece."""

from __future__ import annotations

import mmap
import os
import zlib
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Tuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from .._tree import TensorRef
from .boxes import cut, linear
from .checkpoint import Checkpoint, Entry, Pump, tensor_kind
from .dcp_documents import Stream
from .errors import ConvertError
from .files import NewFile, SourceFile
from .memory import address_of, view
from .progress import Progress
from .saved import load_structure
from .source import ITEMSIZE
from .trees import map_leaves
from .zips import Record, read_records, write_sums

WINDOW = 64 << 20  # bytes in memory at once


def plain(value: Any) -> Any:
    """A value as torch.load(weights_only=True) takes it: a number of numpy becomes Python's, a frozen set a
    set."""
    if isinstance(value, frozenset):
        return set(value)
    if type(value).__module__ == "numpy" and hasattr(value, "item"):
        return value.item()
    return value


@dataclass
class _Target:
    """A tensor of the file: what it is in the checkpoint, and where its bytes go."""

    fake: torch.Tensor
    nbytes: int
    entry: Optional[Entry] = None  # None: it is here already
    own: Optional[Any] = None  # the very slice that is wanted, where several ranks saved one
    here: Optional[torch.Tensor] = None
    record: Optional[Record] = None


class _Skeleton:
    """The state dict with fake tensors: one for each name, so that tied ones stay tied."""

    def __init__(self, checkpoint: Checkpoint, state: Any, rank: Optional[int]) -> None:
        self._checkpoint, self._rank = checkpoint, rank
        self.targets: Dict[Any, _Target] = {}
        read = map_leaves(state, lambda value: value.value() if isinstance(value, Stream) else value)
        with FakeTensorMode():
            self.state = map_leaves(read, self._leaf)

    def _own(self, name: str) -> Tuple[Entry, Optional[Any]]:
        """A rank's own tensor, where it saved all of one and others have their own of that name."""
        known = self._checkpoint.entries.get(name)
        slices = known.slices if known and self._rank is not None else []
        for s in slices:
            if s.rank == self._rank and s.length == s.shape and len(slices) > 1:
                return Entry(name, s.dtype, s.shape, [s]), s
        return self._checkpoint.entry(name), None

    def _leaf(self, value: Any) -> Any:
        key: Any = (value.name, value.dtype) if isinstance(value, TensorRef) else id(value)
        if not isinstance(value, (TensorRef, torch.Tensor)):
            return plain(value)
        if key in self.targets:
            return self.targets[key].fake
        if isinstance(value, TensorRef):
            entry, own = self._own(value.name)
            dtype, shape = tensor_kind(entry, value)
            self.targets[key] = _Target(torch.empty(shape, dtype=dtype), entry.nbytes, entry, own)
        else:  # in a value that DCP saved as bytes
            fake = torch.empty(value.shape, dtype=value.dtype)
            self.targets[key] = _Target(fake, value.numel() * value.element_size(), here=value)
        return self.targets[key].fake


def _tensors(value: Any, found: List[torch.Tensor]) -> List[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        found.append(value)
    elif isinstance(value, dict):
        for item in value.values():
            _tensors(item, found)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _tensors(item, found)
    return found


def _write_skeleton(skeleton: _Skeleton, path: str) -> List[Record]:
    """Writes the file without tensors' bytes, and finds where each goes by reading the structure back."""
    if not hasattr(torch.serialization, "skip_data"):
        raise ConvertError("unsupported", f"torch {torch.__version__} cannot lay files out: 2.13 does")
    try:
        with torch.serialization.skip_data(materialize_fake_tensors=True):
            torch.save(skeleton.state, path)
    except RuntimeError as error:  # torch's writer of zip files does not give the system's error
        raise ConvertError("io", f"{path}: torch cannot write it; is there room? ({error})") from None
    file = SourceFile(path)
    try:
        records = read_records(file, path)
        structure = load_structure(file, 0, file.size, path)  # as whoever loads it will
    finally:
        file.close()
    by_offset = {r.offset: r for r in records.values() if r.name.startswith("data/") and r.size}
    targets = {id(t.fake): t for t in skeleton.targets.values()}
    loaded = _tensors(structure, [])
    for fake, there in zip(_tensors(skeleton.state, []), loaded):
        if there.numel():
            record = by_offset.get(there.untyped_storage()._checkpoint_offset or -1)
            if record is None or record.size != targets[id(fake)].nbytes:
                raise ConvertError(
                    "unsupported",
                    f"this torch ({torch.__version__}) does not lay files out as expected: 2.13 does",
                )
            targets[id(fake)].record = record
    return list(by_offset.values())


class _Filler:
    """Puts tensors' bytes into their records, and sums them."""

    def __init__(self, file: NewFile, checkpoint: Checkpoint, progress: Progress) -> None:
        self._file, self._checkpoint, self._progress = file, checkpoint, progress
        self._pump = Pump(checkpoint, WINDOW, progress)
        self.sums: Dict[int, int] = {}  # by record's offset

    def fill(self, target: _Target) -> None:
        record = target.record
        if record is None:
            return
        self.sums[record.offset] = 0
        if target.here is not None:
            dense = target.here.contiguous()
            self._writer(record, record.offset)(view(dense.data_ptr(), target.nbytes))
        elif target.own is None:
            assert target.entry
            itemsize = ITEMSIZE[target.entry.dtype]
            for start, length in cut(target.entry.shape, itemsize, WINDOW):
                at = record.offset + linear(start, target.entry.shape) * itemsize
                self._pump.add(target.entry, start, length, self._writer(record, at))
        elif target.own.bytes <= WINDOW:
            self._pump.add_slice(target.own, self._writer(record, record.offset))
        else:
            self._fill_mapped(target.own, record)

    def _writer(self, record: Record, at: int) -> Any:
        def write(data: memoryview) -> None:
            self.sums[record.offset] = zlib.crc32(data, self.sums[record.offset])
            self._file.write_at(data, at)

        return write

    def _fill_mapped(self, own: Any, record: Record) -> None:
        """A large slice of one rank comes as a whole: into the mapped file."""
        aligned = record.offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        with mmap.mmap(self._file.fd, record.offset - aligned + record.size, offset=aligned) as mapped:
            with memoryview(mapped) as all_of_it, all_of_it[record.offset - aligned :] as place:
                self._checkpoint.restore.add_slice(own.index, address_of(place))
                self._checkpoint.restore.run(self._checkpoint.timeout)
                for begin in range(0, record.size, WINDOW):
                    self.sums[record.offset] = zlib.crc32(
                        place[begin : begin + WINDOW], self.sums[record.offset]
                    )
            mapped.flush()
        self._progress.add(record.size)

    def finish(self) -> None:
        self._pump.flush()


def write_torch(
    checkpoint: Checkpoint, state: Any, path: str, rank: Optional[int], force: bool, quiet: bool
) -> int:
    """Writes a state dict (with TensorRefs) as a torch.save file that torch.load(weights_only=True) reads.
    rank: whose own tensors are preferred where several ranks saved one name, or None. Returns the file's size
    in bytes.

    Memory is bounded by WINDOW. Errors: ConvertError, cairn.Error, OSError; then nothing is left of the file.
    """
    with NewFile(path, force) as file:
        skeleton = _Skeleton(checkpoint, state, rank)
        records = _write_skeleton(skeleton, file.temporary)
        os.posix_fallocate(
            file.fd, 0, os.fstat(file.fd).st_size
        )  # a full disk is found before anything is read
        progress = Progress(sum(t.nbytes for t in skeleton.targets.values()), quiet)
        filler = _Filler(file, checkpoint, progress)
        try:
            for target in skeleton.targets.values():
                filler.fill(target)
            filler.finish()
        finally:
            progress.close()
        write_sums(file, {r.offset: (r, filler.sums.get(r.offset, 0)) for r in records})
        return file.finish()
