# SPDX-License-Identifier: Apache-2.0
"""torch_checkpointing: its storage interface, kept in Cairn.

    from torch_checkpointing import CheckpointManager
    from cairn.integrations.torch_checkpointing import configure

    manager = CheckpointManager(configure(CheckpointManager.Config(...), "my-run"))
    manager.save("step_100", {"model": model.state_dict()})
    manager.load("step_100", into={"model": model.state_dict()})

A checkpoint id becomes the step that its last part ends in. Every file that a rank writes becomes one tensor
of bytes of that rank's shard; the shard is saved when the rank has written all its files, and Cairn commits
the checkpoint when all ranks' shards are durable. That takes the place of torch_checkpointing's barrier and
of its rename, so configure() turns both off. The future that save() returns is done when the checkpoint is
committed.

What lies in the files is torch_checkpointing's own: it reads them with pickle. Load only what you trust.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import io
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional, Union

from torch_checkpointing.checkpoint_manager import CheckpointManager
from torch_checkpointing.checkpoint_writer import CallbackArgs
from torch_checkpointing.storage.base_storage import ReadArgs, Storage, StorageConfig

from .. import errors, launch
from ..session import Restore, Session
from ..table import Table

_BLOCK = 1 << 20  # bytes read at once where little is asked for
_SLACK = 16 << 20  # bytes of arena beyond the first save and a quarter
_DELETE_AGAIN_S = 0.1


def configure(config: CheckpointManager.Config, job: str, **options: Any) -> CheckpointManager.Config:
    """The configuration, changed to save to and load from the Cairn job. options: fields of CairnStorageConfig.

    Who this rank is, and of which start, is found here and goes with the configuration: the package's background
    process has no process group that it could ask. Raises ValueError when the configuration has a storage or a
    finalize callback already, cairn.InvalidError when nobody says what the start is.
    """
    for field in ("storage_config", "finalize_callback"):
        if getattr(config, field) is not None:
            raise ValueError(
                f"configure: the configuration has a {field} already, and a Cairn job needs its own"
            )
    writer = dataclasses.replace(config.save.writer_config, barrier_config=None, write_to_temp_dir=False)
    here = launch.find(options.get("rank"), options.get("world_size"), options.get("start_id"))
    options.update(rank=here.rank, world_size=here.world_size, start_id=here.start_id)
    return dataclasses.replace(
        config,
        storage_config=CairnStorageConfig(job, **options),
        finalize_callback=commit,
        save=dataclasses.replace(config.save, writer_config=writer),
    )


def commit(args: CallbackArgs) -> None:
    """Every rank's finalize callback: saves what the rank wrote and waits until the checkpoint is committed."""
    if not isinstance(args.storage, CairnStorage):
        raise TypeError(f"commit: the storage is a {type(args.storage).__name__}, not a CairnStorage")
    args.storage.commit(Path(args.path))


@dataclasses.dataclass
class CairnStorageConfig(StorageConfig):
    """Where checkpoints go.

    job: the job's name. arena_bytes: shared memory for snapshots; 0: the first save's size and a quarter.
    rank, world_size, start_id: None: what torch.distributed or the launcher says. socket: None: $CAIRN_SOCKET or
    the default. timeout: seconds that a save may take to be committed, and a read.
    """

    job: str
    arena_bytes: int = 0
    rank: Optional[int] = None
    world_size: Optional[int] = None
    start_id: Optional[str] = None
    socket: Optional[str] = None
    timeout: float = 600.0

    def create_storage(self) -> "CairnStorage":
        return CairnStorage(self)


class CairnStorage(Storage):
    """Files of checkpoints. Safe to use from several threads. The daemon is connected to at the first use."""

    def __init__(self, config: CairnStorageConfig) -> None:
        self._config = config
        self._lock = threading.RLock()
        self._written: dict[Path, bytearray] = {}  # not committed yet
        self._writer: Optional[Session] = None
        self._reader: Optional[Session] = None

    # ---- writing ----

    def stream_write(self, path: Path) -> io.IOBase:
        return _WriteStream(lambda data: self._put(Path(path), data))

    def write(self, path: Path, data: Any) -> None:
        self._put(Path(path), bytearray(memoryview(data).cast("B")))

    def _put(self, path: Path, data: bytearray) -> None:
        with self._lock:
            self._written[path] = data

    def commit(self, directory: Path) -> None:
        """Saves the files written under `directory` as this rank's shard of its step, and waits for the
        commit.

        Errors: FileNotFoundError when nothing was written there; cairn.TimeoutError, cairn.AbortedError and
        others of a save. The files are given up in any case.
        """
        with self._lock:
            files = {path: data for path, data in self._written.items() if directory in path.parents}
            for path in files:
                del self._written[path]
            if not files:
                raise FileNotFoundError(
                    errno.ENOENT, "nothing was written under this checkpoint id", str(directory)
                )
            table = Table()
            for path, data in sorted(files.items()):
                address = ctypes.addressof(ctypes.c_char.from_buffer(data)) if data else 0
                table.add(path.relative_to(directory).as_posix(), "BYTES", (len(data),), address, keep=data)
            session = self._connect_writer(sum(map(len, files.values())))
        try:
            save = session.save(_step_of(directory), table, on_busy="wait", timeout=self._config.timeout)
        except errors.TooLargeError as e:
            raise errors.TooLargeError(f"{e}; give arena_bytes to configure()", e.sys_errno) from None
        try:
            save.wait("committed", self._config.timeout)
        finally:
            save.close()

    def _connect_writer(self, size: int) -> Session:
        if self._writer is None:
            config = self._config
            here = launch.find(config.rank, config.world_size, config.start_id)
            arena = config.arena_bytes or size + size // 4 + _SLACK
            self._writer = Session(
                config.job,
                rank=here.rank,
                world_size=here.world_size,
                arena_bytes=arena,
                start_id=here.start_id,
                socket=config.socket,
            )
        return self._writer

    # ---- reading ----

    def stream_read(self, path: Path, read_args: Optional[ReadArgs] = None) -> io.RawIOBase:
        whole = read_args is None or read_args.pre_read_full_file
        stream = self._open(Path(path))
        if not whole:
            return stream
        with stream:
            return _Bytes(stream.readall())

    def _open(self, path: Path) -> Union["_ReadStream", "_Bytes"]:
        with self._lock:
            if path in self._written:
                return _Bytes(bytes(self._written[path]))
        restore = self._restore(path.parent) if _has_step(path.parent) else None
        found = restore.find(path.name) if restore is not None else None
        if restore is None or found is None:
            if restore is not None:
                restore.close()
            raise FileNotFoundError(
                errno.ENOENT, f"no such file in the checkpoints of {self._config.job}", str(path)
            )
        return _ReadStream(restore, path.name, found[1][0], self._config.timeout)

    def _restore(self, directory: Path) -> Optional[Restore]:
        """The committed checkpoint of a directory, or None. The caller closes it."""
        with self._lock:
            if self._reader is None:
                self._reader = Session(self._config.job, observer=True, socket=self._config.socket)
        try:
            return self._reader.restore(_step_of(directory), self._config.timeout)
        except errors.NotFoundError:
            return None

    def exists(self, path: Path) -> bool:
        return self.isdir(path) or self._is_file(Path(path))

    def _is_file(self, path: Path) -> bool:
        try:
            self._open(path).close()
        except FileNotFoundError:
            return False
        return True

    def isdir(self, path: Path) -> bool:
        path = Path(path)
        with self._lock:
            if any(path in each.parents for each in self._written):
                return True
        restore = self._restore(path) if _has_step(path) else None
        if restore is not None:
            restore.close()
        return restore is not None

    def ls(self, path: Path) -> list[str]:
        path = Path(path)
        with self._lock:
            names = {each.relative_to(path).parts[0] for each in self._written if path in each.parents}
        restore = self._restore(path) if _has_step(path) else None
        if restore is not None:
            with restore:
                names |= {each.name for each in restore.slices()}
        if not names:
            raise FileNotFoundError(errno.ENOENT, f"no such checkpoint of {self._config.job}", str(path))
        return sorted(names)

    def getsize(self, path: Path) -> int:
        with self._open(Path(path)) as stream:
            return stream.seek(0, os.SEEK_END)

    # ---- the rest of a file system ----

    def delete(self, path: Path) -> None:
        with self._lock:
            if self._written.pop(Path(path), None) is None:
                raise OSError(
                    errno.EROFS,
                    "a file of a committed checkpoint cannot be deleted, only the checkpoint",
                    str(path),
                )

    def mkdir(self, path: Path, recursive: bool = True) -> None:
        """Nothing: a directory is there when something is in it."""

    def rmdir(self, path: Path) -> None:
        """Deletes a checkpoint, or what was written of one. Errors: FileNotFoundError, cairn.Error when it is
        held."""
        path = Path(path)
        with self._lock:
            pending = [each for each in self._written if path in each.parents]
            for each in pending:
                del self._written[each]
        if not pending:
            if not self.isdir(path):
                raise FileNotFoundError(errno.ENOENT, f"no such checkpoint of {self._config.job}", str(path))
            self._delete(_step_of(path))

    def _delete(self, step: int) -> None:
        """A checkpoint stays until a newer one is full, which is some moments behind that one's commit."""
        end = time.monotonic() + self._config.timeout
        while True:
            try:
                self._reader.command("delete", step=step)
                return
            except errors.BusyError:
                if time.monotonic() > end:
                    raise
                time.sleep(_DELETE_AGAIN_S)

    def rename(
        self, src_path: Path, dst_path: Path, is_directory: bool = False, background_cleanup: bool = False
    ) -> None:
        """Renames what is not committed yet; a directory onto its final name is committed by that, for a
        world of one rank. (With more, only one rank renames: use configure(), where every rank commits.)"""
        src, dst = Path(src_path), Path(dst_path)
        with self._lock:
            if src in self._written:
                self._written[dst] = self._written.pop(src)
                return
            moved = {each: dst / each.relative_to(src) for each in self._written if src in each.parents}
            if not moved:
                raise FileNotFoundError(errno.ENOENT, "nothing was written there", str(src))
            if self.exists(dst):
                raise FileExistsError(
                    errno.ENOTEMPTY, f"a checkpoint of {self._config.job} is there already", str(dst)
                )
            if launch.find(self._config.rank, self._config.world_size, self._config.start_id).world_size > 1:
                raise OSError(
                    errno.ENOTSUP,
                    "a world of more than one rank commits by the callback that configure() sets",
                    str(dst),
                )
            for old, new in moved.items():
                self._written[new] = self._written.pop(old)
        self.commit(dst)

    def remap_path(self, path: Path) -> str:
        return f"cairn://{self._config.job}/{path}"


def _step_of(directory: Path) -> int:
    found = re.search(r"([0-9]+)$", directory.name)
    if found is None:
        raise ValueError(
            f"checkpoint id {str(directory)!r}: its last part must end in the step, as step_100 does"
        )
    return int(found.group(1))


def _has_step(directory: Path) -> bool:
    return re.search(r"[0-9]$", directory.name) is not None


class _Bytes(io.BytesIO):
    """A whole file in memory. (torch_checkpointing asks for RawIOBase, and means readinto.)"""

    def readall(self) -> bytes:
        return self.read()


class _WriteStream(io.BytesIO):
    """Collects a file and hands it over at close; after an exception in a with block it is given up."""

    def __init__(self, done: Callable[[bytearray], None]) -> None:
        super().__init__()
        self._done: Optional[Callable[[bytearray], None]] = done

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        if kind is not None:
            self._done = None
        self.close()

    def close(self) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(bytearray(self.getbuffer()))
        super().close()


class _ReadStream(io.RawIOBase):
    """A file of a committed checkpoint, read by slices. Holds the checkpoint against deletion until close."""

    def __init__(self, restore: Restore, name: str, size: int, timeout: float) -> None:
        super().__init__()
        self._restore, self._name, self._size, self._timeout = restore, name, size, timeout
        self._position = 0
        self._block, self._block_start = bytearray(), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, "seek before the beginning", self._name)
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        target = memoryview(buffer).cast("B")
        count = max(0, min(len(target), self._size - self._position))
        if count >= _BLOCK:
            self._fetch(target[:count], self._position)
        elif count:
            target[:count] = self._cached(count)
        self._position += count
        return count

    def readall(self) -> bytes:
        data = bytearray(max(0, self._size - self._position))
        self.readinto(data)
        return bytes(data)

    def _cached(self, count: int) -> memoryview:
        start = self._position - self._block_start
        if not (0 <= start and start + count <= len(self._block)):
            self._block_start = self._position
            self._block = bytearray(min(2 * _BLOCK, self._size - self._position))
            self._fetch(memoryview(self._block), self._position)
            start = 0
        return memoryview(self._block)[start : start + count]

    def _fetch(self, target: memoryview, position: int) -> None:
        place = ctypes.c_char.from_buffer(target)
        self._restore.add(
            self._name,
            "BYTES",
            (self._size,),
            ctypes.addressof(place),
            offset=(position,),
            length=(len(target),),
            keep=place,
        )
        self._restore.run(self._timeout)

    def close(self) -> None:
        if not self.closed:
            self._restore.close()
        super().close()
