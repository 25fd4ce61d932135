# SPDX-License-Identifier: Apache-2.0
"""Files: those that are read are never trusted about their own length, those that are written are there as a
whole or not at all."""

from __future__ import annotations

import fcntl
import io
import os
import stat
from typing import IO, Callable, Optional

from .errors import ConvertError

_READ_BYTES = 8 << 20
Tick = Callable[[memoryview], None]


class SourceFile:
    """A file that is read by position. Owns its descriptor; may be read by several threads."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe does not hold it up
        found = os.fstat(self.fd)
        self.size = found.st_size
        if not stat.S_ISREG(found.st_mode):
            self.close()
            kind = "directory" if stat.S_ISDIR(found.st_mode) else "pipe, a socket or a device"
            raise ConvertError("inval", f"{path}: a {kind}, a file is wanted")

    def read_into(self, target: memoryview, offset: int, tick: Optional[Tick] = None) -> None:
        """Fills target with what lies at offset (bytes); tick sees each piece once it is there."""
        while len(target):
            piece = target[:_READ_BYTES]
            n = os.preadv(self.fd, [piece], offset)
            if n == 0:
                raise ConvertError(
                    "corrupt", f"{self.path}: ends at byte {offset}, more was to be read there: it is cut off"
                )
            if tick:
                tick(piece[:n])
            target = target[n:]
            offset += n

    def read(self, offset: int, nbytes: int) -> bytes:
        """nbytes bytes at offset: for headers, whose length was checked before."""
        buffer = bytearray(nbytes)
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def window(self, offset: int, nbytes: int) -> IO[bytes]:
        """A part of the file as a file of its own. It must not outlive this object."""
        return io.BufferedReader(_Window(self, offset, nbytes), buffer_size=1 << 16)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class _Window(io.RawIOBase):
    def __init__(self, file: SourceFile, offset: int, nbytes: int) -> None:
        self._file, self._offset, self._size, self._at = file, offset, nbytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, where: int, whence: int = os.SEEK_SET) -> int:
        at = where + (0 if whence == os.SEEK_SET else self._at if whence == os.SEEK_CUR else self._size)
        if at < 0:
            raise OSError(22, "seek before the beginning")
        self._at = at
        return at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        n = min(len(buffer), max(self._size - self._at, 0))
        if n:
            self._file.read_into(memoryview(buffer).cast("B")[:n], self._offset + self._at)
            self._at += n
        return n


class NewFile:
    """A file made under a temporary name (NAME.part), and renamed once it is whole and synced.

        with NewFile(path, force) as f:
            ... os.pwrite(f.fd, ...)
            f.finish()

    Without finish() nothing is left. Errors: ConvertError "exists" when path is there and force is not set.
    """

    def __init__(self, path: str, force: bool) -> None:
        self.path = path
        self.temporary = path + ".part"
        self.fd = -1
        if os.path.exists(path) and not force:
            raise ConvertError("exists", f"{path} is there already (--force overwrites it)")
        fd = os.open(self.temporary, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            self._lock(fd)
            os.ftruncate(fd, 0)  # what a killed one left
        except BaseException:
            os.close(fd)
            raise
        self.fd = fd

    def _lock(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.path.samestat(os.fstat(fd), os.lstat(self.temporary))
        except (BlockingIOError, FileNotFoundError):
            ours = False  # or it has got its name behind our opening it: it is another one's, and whole
        if not ours:
            raise ConvertError("exists", f"{self.temporary} is being written by another process")

    def __enter__(self) -> "NewFile":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.fd >= 0:
            os.unlink(self.temporary)
            os.close(self.fd)
            self.fd = -1

    def write_at(self, data: memoryview, offset: int) -> None:
        """Writes all of data at offset (bytes)."""
        while len(data):
            n = os.pwrite(self.fd, data, offset)
            data = data[n:]
            offset += n

    def finish(self) -> int:
        """Syncs it and gives it its name. Returns its size in bytes."""
        os.fsync(self.fd)
        size = os.fstat(self.fd).st_size
        os.rename(self.temporary, self.path)
        os.close(self.fd)
        self.fd = -1
        sync_directory(os.path.dirname(self.path) or ".")
        return size


def read_file(path: str, limit: int) -> bytes:
    """A whole file, of which no more than limit bytes are taken. Errors: ConvertError, OSError."""
    file = SourceFile(path)
    try:
        if file.size > limit:
            raise ConvertError("corrupt", f"{path}: {file.size} bytes are too many, {limit} are possible")
        return file.read(0, file.size)
    finally:
        file.close()


def sync_directory(path: str) -> None:
    """Makes names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
