# SPDX-License-Identifier: Apache-2.0
"""Where the records of a torch.save file lie. It is a zip file whose records are stored as they are; nothing
of it is ever unpacked to a path."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

from .errors import ConvertError
from .files import NewFile, SourceFile

_LOCAL = struct.Struct("<4s2B4HL2L2H")  # a local header's fixed part
_MAX_RECORDS = 4_000_000
_CHECK_BYTES = 8 << 20


@dataclass(frozen=True)
class Record:
    name: str
    offset: int  # of its bytes, from the zip file's beginning
    size: int
    crc: int


def _check_info(what: str, info: zipfile.ZipInfo) -> None:
    parts = info.filename.replace("\\", "/").split("/")
    if info.filename.startswith("/") or ".." in parts or "\\" in info.filename or ":" in parts[0]:
        raise ConvertError(
            "corrupt", f'{what}: it has a record "{info.filename}", which torch.save does not write'
        )
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
        raise ConvertError(
            "unsupported",
            f'{what}: record "{info.filename}" is compressed or encrypted, which torch.save does not do',
        )


def _data_offset(what: str, file: SourceFile, base: int, size: int, info: zipfile.ZipInfo) -> int:
    if info.header_offset + _LOCAL.size > size:
        raise ConvertError("corrupt", f'{what}: record "{info.filename}" lies beyond the end')
    head = file.read(base + info.header_offset, _LOCAL.size)
    fields = _LOCAL.unpack(head)
    if fields[0] != b"PK\x03\x04":
        raise ConvertError(
            "corrupt", f'{what}: record "{info.filename}" does not begin where the directory says'
        )
    return info.header_offset + _LOCAL.size + fields[-2] + fields[-1]


def read_records(file: SourceFile, what: str, base: int = 0, size: Optional[int] = None) -> Dict[str, Record]:
    """The records of the zip file that lies at base of file, by name without the archive's own first
    directory.

    Checked: no strange names, nothing compressed, no name twice, no two records in one place, all within
    size.
    """
    size = file.size - base if size is None else size
    try:
        with zipfile.ZipFile(file.window(base, size)) as archive:  # type: ignore[arg-type]
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        raise ConvertError(
            "corrupt", f"{what}: no file of torch.save's format, or cut off: {error}"
        ) from None
    if len(infos) > _MAX_RECORDS:
        raise ConvertError("corrupt", f"{what}: {len(infos)} records")
    records: Dict[str, Record] = {}
    end = 0
    for info in sorted(infos, key=lambda i: i.header_offset):
        _check_info(what, info)
        offset = _data_offset(what, file, base, size, info)
        name = info.filename.partition("/")[2]
        if name in records or info.header_offset < end or offset + info.file_size > size:
            raise ConvertError(
                "corrupt",
                f'{what}: record "{info.filename}" lies where or is called as another one, or beyond the end',
            )
        records[name] = Record(name, offset, info.file_size, info.CRC)
        end = offset + info.file_size
    if "data.pkl" not in records:
        raise ConvertError(
            "unsupported", f"{what}: a zip file, but not one of torch.save (it has no data.pkl)"
        )
    return records


class Checksums:
    """Compares records with their CRC-32 while they are read. What is read in order is summed on the way;
    what is not is read once more at the end. Positions are the file's."""

    def __init__(self, file: SourceFile, what: str, base: int, records: List[Record]) -> None:
        self._file, self._what = file, what
        self._records = {base + r.offset: r for r in records}
        self._order = sorted(self._records)
        self._sums: Dict[int, List[int]] = {at: [at, 0] for at in self._order}  # next position, sum so far

    def seen(self, record_at: int, at: int, piece: memoryview) -> None:
        """These bytes of the record that begins at record_at were read, at file position at."""
        state = self._sums[record_at]
        if state[0] == at:
            state[0] += len(piece)
            state[1] = zlib.crc32(piece, state[1])

    def _sum_rest(self, at: int, record: Record) -> int:
        buffer = memoryview(bytearray(_CHECK_BYTES))
        position, total = self._sums[at]
        while position < at + record.size:
            piece = buffer[: at + record.size - position]
            self._file.read_into(piece, position)
            total = zlib.crc32(piece, total)
            position += len(piece)
        return total

    def finish(self) -> None:
        """Errors: ConvertError "corrupt" names the first record whose sum differs."""
        for at in self._order:
            record = self._records[at]
            if self._sum_rest(at, record) != record.crc:
                raise ConvertError(
                    "corrupt", f'{self._what}: record "{record.name}" does not have its CRC-32: the file is damaged (or was '
                    "written without checksums: --unchecked takes it as it is)")  # fmt: skip


# ---- writing -----------------------------------------------------------------------------------------------

_CENTRAL = struct.Struct("<4s4B4H3L5H2L")
_DESCRIPTOR = b"PK\x07\x08"  # behind a record's bytes, where its local header left the sum out
_HAS_DESCRIPTOR = 8  # a flag


def _central_headers(file: NewFile) -> Dict[str, Tuple[int, int, int]]:
    """Of each record: where its entry in the directory lies, its flags, and where its local header lies."""
    with open(file.temporary, "rb") as f, zipfile.ZipFile(f) as archive:
        at, found = archive.start_dir, {}
        for info in archive.infolist():  # in the directory's order
            head = _CENTRAL.unpack(os.pread(file.fd, _CENTRAL.size, at))
            if head[0] != b"PK\x01\x02":
                raise ConvertError("unsupported", f"{file.temporary}: the zip directory is not as expected")
            found[info.filename.partition("/")[2]] = (at, info.flag_bits, info.header_offset)
            at += _CENTRAL.size + head[12] + head[13] + head[14]
        return found


def write_sums(file: NewFile, sums: Dict[int, Tuple[Record, int]]) -> None:
    """Writes the CRC-32 of records that were filled after their headers: into the directory, and beside the
    bytes."""
    places = _central_headers(file)
    for record, crc in sums.values():
        word = memoryview(struct.pack("<L", crc))
        central, flags, local = places[record.name]
        file.write_at(word, central + 16)
        end = record.offset + record.size
        if flags & _HAS_DESCRIPTOR:
            if os.pread(file.fd, 4, end) == _DESCRIPTOR:
                file.write_at(word, end + 4)
        else:
            file.write_at(word, local + 14)
