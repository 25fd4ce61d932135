# SPDX-License-Identifier: Apache-2.0
"""What torch.save has written, by its structure alone: tensors without data, and where their bytes lie in the
file.

torch's own weights-only reader makes the structure, on the "meta" device; what it refuses is refused here.
The zip file's directory says where records are, and both must agree.
"""

from __future__ import annotations

import mmap
import pickle
from dataclasses import dataclass
from typing import Any, Dict, Hashable, Optional, Tuple

import torch

from .boxes import Dims, is_contiguous
from .errors import ConvertError
from .files import SourceFile
from .source import Nothing, Reader, Stored
from .zips import Checksums, Record, read_records

_MOST_EXPANDED = 64 << 20  # bytes of a tensor whose elements share memory
_LEGACY = (b"\x80", b"ustar")  # torch.save before 1.6 wrote pickles or tar files


def _refusal(tensor: torch.Tensor) -> Optional[str]:
    """Why a tensor is more than its bytes, or None."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        return f"a tensor of layout {tensor.layout} or a quantised one: only dense ones can be imported"
    if tensor.is_conj() or tensor.is_neg():
        return "a conjugated or negated view of a tensor: save it resolved (resolve_conj, resolve_neg)"
    return None


def _check_reach(what: str, tensor: torch.Tensor, record: Record) -> None:
    """A tensor lies within its record, and does not make much of little (a stride of 0)."""
    last = tensor.storage_offset() + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride()))
    nbytes = tensor.numel() * tensor.element_size()
    if (last + 1) * tensor.element_size() > record.size or min(
        (*tensor.stride(), tensor.storage_offset(), 0)
    ) < 0:
        raise ConvertError("corrupt", f"{what}: a tensor reaches beyond its record {record.name}")
    if nbytes > max(record.size, _MOST_EXPANDED):
        raise ConvertError(
            "unsupported",
            f"{what}: a tensor of {nbytes} bytes is an expanded view of {record.size}: save it dense",
        )


@dataclass
class Saved:
    """One torch.save, in a file or in a part of one. value's tensors are on "meta": reader_of() reads their
    bytes."""

    file: SourceFile
    base: int  # byte of the file where it begins
    what: str  # for messages
    value: Any
    records: Dict[int, Record]  # by where their bytes begin, from base on
    checksums: Optional[Checksums]

    def place_of(self, tensor: torch.Tensor) -> Optional[Hashable]:
        """Equal for tensors that are one: record, shape, strides, begin in the record (elements), dtype."""
        if tensor.layout != torch.strided or tensor.numel() == 0:
            return None
        offset = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
        return (offset, tuple(tensor.shape), tuple(tensor.stride()), tensor.storage_offset(), tensor.dtype)

    def _record_of(self, tensor: torch.Tensor) -> Optional[Record]:
        """The record of a tensor's bytes, None where it has none. Errors: ConvertError where it cannot be
        imported."""
        why = _refusal(tensor)
        if why:
            raise ConvertError("unsupported", f"{self.what}: {why}")
        if tensor.numel() == 0:
            return None
        storage = tensor.untyped_storage()
        offset = getattr(storage, "_checkpoint_offset", None)
        if offset is None:
            raise ConvertError(
                "unsupported",
                f"torch {torch.__version__} does not say where in a file tensors lie: 2.13 does",
            )
        record = self.records.get(offset)
        if record is None or record.size != storage.nbytes():
            raise ConvertError(
                "corrupt", f"{self.what}: a tensor's bytes are not where its zip directory has a record"
            )
        _check_reach(self.what, tensor, record)
        return record

    def reader_of(self, tensor: torch.Tensor, as_bytes: bool) -> Reader:
        """Reads the tensor's bytes. as_bytes: as bytes with a last dimension more. Errors: ConvertError where
        it cannot be imported or lies outside of the file."""
        record = self._record_of(tensor)
        shape, stride, itemsize = tuple(tensor.shape), tuple(tensor.stride()), tensor.element_size()
        first = int(tensor.storage_offset()) * itemsize
        if as_bytes:
            shape, stride, itemsize = shape + (itemsize,), tuple(s * itemsize for s in stride) + (1,), 1
        if record is None:
            return Nothing()
        begin = self.base + record.offset
        if not is_contiguous(shape, stride):
            return Strided(self, record, shape, tuple(s * itemsize for s in stride), first, itemsize)
        checksums = self.checksums
        tick = (lambda at, piece: checksums.seen(begin, at, piece)) if checksums else None
        return Stored(self.file, begin + first, shape, itemsize, tick)

    def map(self, offset: int, nbytes: int) -> Tuple[mmap.mmap, int]:
        """A private mapping of a part (from base on), and where in it the part begins. Its owner closes
        it."""
        at = self.base + offset
        aligned = at // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        return (
            mmap.mmap(self.file.fd, at - aligned + nbytes, access=mmap.ACCESS_COPY, offset=aligned),
            at - aligned,
        )

    def finish(self) -> None:
        """After all is read: compares checksums. Errors: ConvertError "corrupt"."""
        if self.checksums:
            self.checksums.finish()


@dataclass(frozen=True)
class Strided:
    """A Reader: a tensor that is not dense and row-major in its record."""

    saved: Saved
    record: Record
    shape: Dims
    stride: Dims  # bytes
    first: int  # byte of the record where the tensor begins
    itemsize: int

    def read(self, start: Dims, length: Dims, target: memoryview) -> None:
        if not len(target):
            return
        mapped, at = self.saved.map(self.record.offset, self.record.size)
        try:
            self._gather(mapped, at, start, length, target)
        finally:
            mapped.close()

    def _gather(self, mapped: mmap.mmap, at: int, start: Dims, length: Dims, target: memoryview) -> None:
        # As bytes with a last dimension more: what lies in the file need not be aligned.
        source = torch.frombuffer(mapped, dtype=torch.uint8, offset=at, count=self.record.size)
        first = self.first + sum(i * s for i, s in zip(start, self.stride))
        view = source.as_strided(length + (self.itemsize,), self.stride + (1,), first)
        torch.frombuffer(target, dtype=torch.uint8).view(length + (self.itemsize,)).copy_(view)


def load_structure(file: SourceFile, base: int, size: int, what: str) -> Any:
    """What a torch.save at base of file holds, tensors on "meta". Nothing is executed but what torch vouches
    for. Errors: ConvertError "unsupported" names what else was asked for; "corrupt"."""
    try:
        with file.window(base, size) as window:
            return torch.load(window, map_location="meta", weights_only=True)
    except pickle.UnpicklingError as error:
        lines = [
            line.strip()
            for line in str(error).splitlines()
            if "Unsupported" in line or "not an allowed" in line or "GLOBAL" in line
        ]
        why = lines[0] if lines else str(error).splitlines()[0]
        raise ConvertError(
            "unsupported",
            f"{what}: it holds more than tensors and plain values, and nothing of it is executed: " f"{why}",
        ) from None
    except ConvertError:
        raise
    except Exception as error:  # noqa: BLE001  a damaged pickle may end in any of them
        raise ConvertError(
            "corrupt",
            f"{what}: its structure cannot be read: {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}",
        ) from None


def read_saved(
    file: SourceFile, what: str, checked: bool, base: int = 0, size: Optional[int] = None
) -> Saved:
    """Reads the structure of a torch.save at base of file (bytes). checked: records are compared with their
    checksums.

    Errors: ConvertError "corrupt" or "unsupported"; nothing of what it describes was read or allocated then.
    """
    size = file.size - base if size is None else size
    head = file.read(base, min(size, 262))
    if not head.startswith(b"PK\x03\x04"):
        old = head.startswith(_LEGACY[0]) or head[257:262] == _LEGACY[1]
        raise ConvertError("unsupported" if old else "corrupt",
                           f"{what}: " + ("the format of torch.save before version 1.6: load and save it with a newer one" if old
                                          else "no file of torch.save"))  # fmt: skip
    records = read_records(file, what, base, size)
    order = records.get("byteorder")
    if order and file.read(base + order.offset, min(order.size, 16)) != b"little":
        raise ConvertError("unsupported", f"{what}: it was saved on a big-endian machine")
    value = load_structure(file, base, size, what)
    data = [r for r in records.values() if r.name.startswith("data/") and r.size > 0]
    checksums = Checksums(file, what, base, data) if checked else None
    return Saved(file, base, what, value, {r.offset: r for r in data}, checksums)
