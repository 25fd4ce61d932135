# SPDX-License-Identifier: Apache-2.0
"""Sessions, saves and restores as libcairn knows them; cairn.Checkpointer is built of these.

Times are in seconds, sizes in bytes. Every call into libcairn gives the interpreter lock back while it runs; every wait
has a deadline and can be interrupted by Ctrl-C. A session may be used from several threads at once, a Save or a Restore
by one at a time.
"""
from __future__ import annotations

import ctypes
import dataclasses
import errno
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from ctypes import byref, c_char_p, c_uint32, c_uint64, c_void_p
from typing import Any, Optional, Union

from . import _lib
from .errors import (
    DeniedError, Error, InvalidError, NotFoundError, TimeoutError, UnavailableError,
)
from .table import Table

_MAX_MS = 2**32 - 1
_STEPS = {None: _lib.LATEST, "latest": _lib.LATEST, "latest-finite": _lib.LATEST_FINITE}
_REPORT_S = 0.1  # between two calls of a progress function
_PIECE_S = 2.0  # of a long wait: a signal that came just before the library began to wait is seen after it

_NO_DAEMON = (": is cairnd running? `systemctl start cairnd` starts it; CAIRN_SOCKET, or socket=, names the socket of one that "
              "runs elsewhere")
_HINTS = {
    errno.ENOENT: _NO_DAEMON,
    errno.ECONNREFUSED: _NO_DAEMON,
    errno.EACCES: ": members of the group cairn may connect (`usermod -aG cairn USER`, then log in again)",
}


def _ms(seconds: float) -> int:
    if not seconds >= 0:
        raise InvalidError(f"a timeout of {seconds} s: a number from 0 is wanted")
    return min(int(seconds * 1000), _MAX_MS)


def _ours(thing: Any) -> bool:
    """False in a forked child, where nothing of the parent's is to be touched, and when the interpreter is going down."""
    return os is not None and os.getpid() == thing._pid


def _text(value: Optional[str]) -> Optional[bytes]:
    return None if value is None else value.encode()


class Session:
    """A connection of one rank (or, with observer=True, of a reader without a rank) to the node's cairnd.

    arena_bytes: room for snapshots, one shard plus 25% to overlap saves; faulted in by the time this returns. start_id: names
    this start of the job, equal on all ranks (see cairn.h). socket: None for $CAIRN_SOCKET or /run/cairn/cairnd.sock.
    timeout: for the opening and each later exchange with the daemon. device_staging: bytes of each device's own memory
    that may be taken, for tensors that are volatile, small or strided; 0 for 256 MiB, taken at the first use. source_sums:
    devices give checksums of what they read, which the daemon compares with what arrived. pack: tensors on devices are
    packed there where that measures faster (CAIRN_PACK in cairn.h; not with track). plugin_path: where device plugins are;
    None for $CAIRN_PLUGIN_PATH, or where libcairn's are. Raises UnavailableError when no daemon listens,
    ExistsError when the rank is taken, BusyError when another start of the job lives, FencedError, TooLargeError.
    """

    def __init__(
        self,
        job: Optional[str],
        *,
        rank: int = 0,
        world_size: int = 1,
        arena_bytes: int = 0,
        start_id: Optional[str] = None,
        socket: Optional[str] = None,
        timeout: float = 30.0,
        copy_threads: int = 1,
        observer: bool = False,
        take_over: bool = False,
        track: bool = False,
        device_staging: int = 0,
        source_sums: bool = False,
        pack: bool = False,
        plugin_path: Optional[str] = None,
    ) -> None:
        self._handle = c_void_p()
        self._pid = os.getpid()
        flags = observer * _lib.OBSERVER | take_over * _lib.TAKE_OVER | track * _lib.TRACK
        flags |= source_sums * _lib.SOURCE_SUMS | pack * _lib.PACK
        options = _lib.SessionOptions(
            ctypes.sizeof(_lib.SessionOptions), _text(job), rank, world_size, arena_bytes, _text(start_id), _text(socket),
            max(_ms(timeout), 1), copy_threads, flags, device_staging, _text(plugin_path),
        )
        self.job = job
        # Handles of open saves and restores, with the function that frees them. The handles, not the objects: when all of
        # them are garbage together, Python clears weak references first and then finalizes in any order.
        self._children: dict[int, tuple[c_void_p, str]] = {}
        self._kept: list[tuple[Save, Any]] = []  # see keep()
        self._held: list[Any] = []  # see hold()
        self._keeping = threading.Lock()
        try:
            _lib.call("cairn_session_open", byref(options), byref(self._handle))
        except (UnavailableError, DeniedError) as e:
            raise type(e)(f"{e}{_HINTS.get(e.sys_errno, '')}", e.sys_errno) from None

    @property
    def incarnation(self) -> int:
        """The fencing number this session saves under; 0 for an observer."""
        return _lib.lib().cairn_session_incarnation(self._open())

    @property
    def arena_bytes(self) -> int:
        """Room for snapshots: at least what was asked for, more where the rank's arena of before its restart was larger."""
        return _lib.lib().cairn_session_arena_bytes(self._open())

    def fileno(self) -> int:
        """A descriptor that becomes readable when a state of a save may have changed. The session's."""
        return _lib.lib().cairn_session_fd(self._open())

    def use_device(self, device: int) -> None:
        """Makes a device ready, which the first save or restore of its tensors would do: loads the plugin and the vendor's
        runtime, and pins the arena. device: cairn.cuda(i). Raises UnsupportedError, which says what is missing."""
        _lib.call("cairn_session_use_device", self._open(), device)

    def fence(self, device: int, stream: int) -> None:
        """Makes a device's stream (its cudaStream_t as a number; 0 is the legacy default stream), and not the host, wait
        until the device's tensors of every save before have been copied: what is put into it from now on may change them.
        In a stream that is being captured into a CUDA graph every launch of the graph waits."""
        _lib.call("cairn_save_fence", self._open(), device, stream or None)

    def save(
        self,
        step: int,
        table: Table,
        *,
        on_busy: str = "fail",
        timeout: Optional[float] = None,
        streams: Optional[Mapping[int, int]] = None,
        begun: Optional[Callable[["Save"], None]] = None,
    ) -> "Save":
        """Copies every slice of the table into the arena, in one call. When it returns the tensors may be changed; those on
        a device only by what fence() holds back, or once the save is a "snapshot", and until then their memory must live.

        on_busy: "fail" raises BusyError at once when the arena has no room, "wait" waits up to timeout (None: the
        session's). streams: of each device the stream that wrote its tensors (as for fence()); copies begin when what it
        holds now has run; the legacy default stream where nothing is said. begun: is given the Save before anything is
        copied, for who has to know of it although Ctrl-C ends this call behind the copy; until then it has not is_begun.
        Raises also TooLargeError, ExistsError (this step was saved already), FencedError, UnavailableError.
        """
        options = self._save_options(step, on_busy, timeout, streams)
        self._let_go()
        save = Save(self, step, len(table))
        if begun:
            begun(save)
        _lib.call("cairn_save_all", self._open(), byref(options), table.pack(), len(table), byref(save._handle))
        return save

    def stage(
        self,
        step: int,
        table: Table,
        *,
        on_busy: str = "fail",
        timeout: Optional[float] = None,
        streams: Optional[Mapping[int, int]] = None,
    ) -> "Save":
        """As save(), but slices with address 0 are left for the caller to write through Save.place(), and the snapshot is
        complete only with Save.seal()."""
        options = self._save_options(step, on_busy, timeout, streams)
        self._let_go()
        save = Save(self, step, len(table))
        save._is_staged = True
        try:
            _lib.call("cairn_save_begin", self._open(), byref(options), byref(save._handle))
            save._add_all(table)
            _lib.call("cairn_save_stage", save._handle)
        except BaseException:
            save.close()
            raise
        return save

    @staticmethod
    def _save_options(
        step: int, on_busy: str, timeout: Optional[float], streams: Optional[Mapping[int, int]]
    ) -> _lib.SaveOptions:
        if on_busy not in _lib.ON_BUSY:
            raise InvalidError(f'on_busy is {on_busy!r}: "fail" or "wait" is wanted')
        if not 0 <= step < _lib.LATEST:
            raise InvalidError(f"step is {step}: a number from 0 to {_lib.LATEST - 1} is wanted")
        milliseconds = 0 if timeout is None else max(_ms(timeout), 1)
        listed = [_lib.CStream(device, 0, stream or None) for device, stream in (streams or {}).items()]
        return _lib.SaveOptions(
            ctypes.sizeof(_lib.SaveOptions), step, _lib.ON_BUSY[on_busy], milliseconds,
            (_lib.CStream * len(listed))(*listed) if listed else None, len(listed),
        )

    def latest(self) -> Optional[int]:
        """The step that all ranks of this incarnation resume from (for an observer the newest committed one), or None."""
        step = c_uint64()
        try:
            _lib.call("cairn_latest", self._open(), byref(step))
        except NotFoundError:
            return None
        return step.value

    def restore(self, step: Union[int, str, None] = None, timeout: float = 60.0) -> "Restore":
        """Opens a committed checkpoint, the newest by default, for reading. step: also "latest-finite", the newest of which it
        is known that no tensor has NaN or Inf. Raises NotFoundError."""
        if isinstance(step, str) and step not in _STEPS:
            raise InvalidError(f'step is {step!r}: a number, "latest" or "latest-finite" is wanted')
        wanted = step if isinstance(step, int) else _STEPS[step]
        return Restore(self, wanted, timeout)

    def query(self, kind: str, job: Optional[str] = None, step: int = 0, timeout: float = 60.0) -> dict[str, Any]:
        """The daemon's answer (docs/json.md). kind: "status", "list", "show" or "verify"."""
        return self._ask("cairn_query", _lib.QUERIES, kind, job, step, timeout)

    def command(
        self,
        kind: str,
        job: Optional[str] = None,
        step: int = 0,
        argument: Optional[str] = None,
        timeout: float = 60.0,
    ) -> dict[str, Any]:
        """As query(), for what changes something: "pin", "unpin", "delete", "retain", "repair", "scrub", "rebuild"."""
        return self._ask("cairn_command", _lib.COMMANDS, kind, job, step, timeout, _text(argument))

    def _ask(self, function: str, kinds: dict[str, int], kind: str, job: Optional[str], step: int, timeout: float,
             *argument: Optional[bytes]) -> dict[str, Any]:
        if kind not in kinds:
            raise InvalidError(f"kind is {kind!r}: one of {', '.join(kinds)} is wanted")
        answer = c_void_p()
        _lib.call(function, self._open(), kinds[kind], _text(job or self.job), step, *argument, _ms(timeout), byref(answer))
        try:
            return json.loads(ctypes.cast(answer, c_char_p).value or b"{}")
        finally:
            _lib.free(answer)

    def _open(self) -> c_void_p:
        if not self._handle:
            raise InvalidError("the session is closed")
        return self._handle

    def _adopt(self, free: str) -> c_void_p:
        """Where the handle of a save or restore is put: libcairn wants it freed before the session, also where Ctrl-C comes
        between its making and the next line."""
        child = c_void_p()
        self._children[id(child)] = (child, free)
        return child

    def _free(self, child: c_void_p) -> None:
        """Frees a save or restore once; its handle is NULL afterwards, also for the object that holds it."""
        known = self._children.pop(id(child), None)
        if known is not None and child:
            address, child.value = child.value, None
            getattr(_lib.lib(), known[1])(c_void_p(address))

    def keep(self, save: "Save", memory: Any) -> None:
        """Holds what owns the memory of a save's tensors on devices until they are copied, or the session is closed, for who
        does not wait for that any more. The save is the session's from now on."""
        self._kept.append((save, memory))

    def hold(self, memory: Any) -> None:
        """Until the session is closed, which waits for copies: for who goes away while devices copy."""
        self._held.append(memory)

    def _let_go(self) -> None:
        """Of memory that nothing is copied from any more."""
        if self._keeping.acquire(blocking=False):  # a Save is used by one thread at a time
            try:
                for kept in [k for k in self._kept if not k[0]._is_copying()]:
                    self._kept.remove(kept)
                    kept[0].close()
            finally:
                self._keeping.release()

    def close(self) -> None:
        """Waits for copies from devices, up to the session's timeout, and else for nothing: sealed saves go on in the daemon.
        Saves and restores of this session are closed with it."""
        for child, _ in list(self._children.values()):
            self._free(child)
        handle, self._handle = self._handle, c_void_p()
        if handle:
            _lib.lib().cairn_session_close(handle)
        self._kept.clear()  # before it the copies had to end
        self._held.clear()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) and _ours(self):
            self.close()


class Save:
    """A save on its way: in the arena when this object exists (tensors of devices: once it is a "snapshot"), then durable,
    then committed."""

    def __init__(self, session: Session, step: int, count: int) -> None:
        self._session, self.step, self._count = session, step, count
        self._pid = os.getpid()
        self._table: Optional[Table] = None
        self._is_staged = False  # and not sealed
        self._handle = session._adopt("cairn_save_free")

    @property
    def is_begun(self) -> bool:
        """Whether it is on its way, as far as it is known: neither yet to be made or sealed, nor closed."""
        return bool(self._handle) and not self._is_staged

    def _is_copying(self) -> bool:
        """Whether devices copy still."""
        try:
            return not self.is_reached("snapshot")
        except Error:  # of what comes behind the copies
            return False

    def _add_all(self, table: Table) -> None:
        _lib.call("cairn_save_add_all", self._handle, table.pack(), len(table))
        self._table = table  # owns the memory until the seal

    def _open(self) -> c_void_p:
        if not self._handle:
            raise InvalidError(f"the save of step {self.step} is closed")
        return self._handle

    def place(self, index: int) -> int:
        """After Session.stage(): the address of a slice in the arena, dense and row-major; writable until seal(), mapped
        until close()."""
        address = c_void_p()
        _lib.call("cairn_save_place", self._open(), index, byref(address))
        return address.value or 0

    def seal(self) -> None:
        """After Session.stage(): all bytes are written, the snapshot is complete."""
        self._is_staged = False
        _lib.call("cairn_save_seal", self._open())
        self._table = None

    def wait(self, state: str = "committed", timeout: float = 600.0) -> None:
        """Waits until the save is "snapshot", "durable" (this rank's shard is on stable storage) or "committed" (the
        checkpoint of all ranks exists). Raises TimeoutError, AbortedError (why is in the message), UnavailableError."""
        if state not in _lib.STATES:
            raise InvalidError(f'state is {state!r}: "snapshot", "durable" or "committed" is wanted')
        end = time.monotonic() + timeout
        while not self.wait_a_while(state, end, timeout):
            pass

    def wait_a_while(self, state: str, end: float, timeout: float) -> bool:
        """As wait(), until the monotonic time end, but for two seconds at most; False when there is more to wait for. timeout:
        of the whole, for messages."""
        try:
            return self._wait_a_piece(_lib.STATES[state], max(0.0, end - time.monotonic()))
        except TimeoutError as e:  # which knows of its last piece only
            raise e if timeout <= _PIECE_S else TimeoutError(f"waited {timeout:g} s: {e}") from None

    def _wait_a_piece(self, state: int, left: float) -> bool:
        """False: go on waiting. Between two pieces Python runs its signal handlers, and Ctrl-C leaves wait()."""
        piece_end = time.monotonic() + _PIECE_S
        is_last = left <= _PIECE_S
        err = _lib.CError()
        # Without a struct for the error libcairn does not ask the daemon why it takes so long.
        told = byref(err) if is_last else None
        code = _lib.lib().cairn_save_wait(self._open(), state, _ms(min(left, _PIECE_S)), told)
        if code == _lib.INTR or (code == _lib.TIMEOUT and not is_last):
            return False
        if code == _lib.UNAVAILABLE and not is_last and time.monotonic() >= piece_end:
            return False  # a daemon that is away is waited for; one that has lost the save says so at once
        if code < 0 and not is_last:
            code = _lib.lib().cairn_save_wait(self._open(), state, 0, byref(err))  # the same again, with its reason
            if code == _lib.TIMEOUT:
                return False
        _lib.check(code, err)
        return True

    def is_reached(self, state: str = "committed") -> bool:
        """Looks without waiting. Raises what made the save fail."""
        try:
            self.wait(state, 0)
        except TimeoutError:
            return False
        return True

    def info(self) -> dict[str, Any]:
        """bytes of all slices, copied_bytes of them, tracked_bytes, and tracking: "on" or why nothing is tracked. Once the
        save is a "snapshot", device_bytes: of the tensors on devices, and of these unchanged_bytes, which were not copied
        since the arena had them, staged_bytes, which were copied aside on the device first, and packed_bytes, which were
        packed there."""
        info = _lib.SaveInfo(size=ctypes.sizeof(_lib.SaveInfo))
        code = _lib.lib().cairn_save_info(self._open(), byref(info))
        if code < 0:
            raise Error(f"ask what the save of step {self.step} did: code {code}")
        return {
            "bytes": info.bytes, "copied_bytes": info.copied_bytes, "tracked_bytes": info.tracked_bytes,
            "tracking": info.tracking.decode(), "device_bytes": info.device_bytes,
            "unchanged_bytes": info.unchanged_bytes, "staged_bytes": info.staged_bytes,
            "packed_bytes": info.packed_bytes,
        }

    def close(self) -> None:
        """Before the seal: gives the step up. After it: only forgets the handle, the daemon goes on."""
        self._session._free(self._handle)
        self._table = None

    def __del__(self) -> None:
        if hasattr(self, "_handle") and _ours(self):
            self.close()


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice as a rank saved it: where it lies in its tensor, in elements."""

    rank: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    length: tuple[int, ...]
    index: int

    @property
    def bytes(self) -> int:
        """Of the slice, dense."""
        size = _lib.ITEM_SIZES[self.dtype]
        for n in self.length:
            size *= n
        return size


class Restore:
    """A committed checkpoint opened for reading. add() what is wanted, then run()."""

    def __init__(self, session: Session, step: int, timeout: float) -> None:
        """step: as libcairn has it."""
        self._session = session
        self._pid = os.getpid()
        self._wanted = Table()
        self._keep: list[Any] = []
        self._handle = session._adopt("cairn_restore_free")
        _lib.call("cairn_restore_open", session._open(), step, _ms(timeout), byref(self._handle))
        info = _lib.CheckpointInfo(size=ctypes.sizeof(_lib.CheckpointInfo))
        code = _lib.lib().cairn_restore_info(self._handle, byref(info))
        if code < 0:
            raise Error(f"ask what a checkpoint holds: code {code}")
        self.step: int = info.step
        self.incarnation: int = info.incarnation
        self.world_size: int = info.world_size
        self.bytes: int = info.bytes
        self._count: int = info.slices

    @property
    def session(self) -> Session:
        """Of which it is."""
        return self._session

    def _open(self) -> c_void_p:
        if not self._handle:
            raise InvalidError("the restore is closed")
        return self._handle

    def slices(self) -> Iterator[Slice]:
        """Every slice that was saved, by rank and then in the order of saving."""
        for i in range(self._count):
            rank, t = c_uint32(), _lib.CTensor(size=ctypes.sizeof(_lib.CTensor))
            code = _lib.lib().cairn_restore_slice(self._open(), i, byref(rank), byref(t))
            if code < 0:
                raise Error(f"read slice {i} of the checkpoint's table: code {code}")
            n = t.ndim
            name, dtype = t.name.decode(), _lib.DTYPE_NAMES[t.dtype]
            yield Slice(rank.value, name, dtype, tuple(t.shape[:n]), tuple(t.offset[:n]), tuple(t.length[:n]), i)

    def find(self, name: str) -> Optional[tuple[str, tuple[int, ...]]]:
        """dtype and shape of a saved tensor, or None."""
        t = _lib.CTensor(size=ctypes.sizeof(_lib.CTensor))
        try:
            _lib.call("cairn_restore_find", self._open(), name.encode(), byref(t))
        except NotFoundError:
            return None
        return _lib.DTYPE_NAMES[t.dtype], tuple(t.shape[: t.ndim])

    def add(
        self,
        name: str,
        dtype: str,
        shape: Sequence[int],
        address: int,
        *,
        offset: Optional[Sequence[int]] = None,
        length: Optional[Sequence[int]] = None,
        strides: Optional[Sequence[int]] = None,
        device: int = _lib.HOST,
        keep: Any = None,
    ) -> None:
        """Asks for a slice of a tensor, in global coordinates, into memory at address (see Table.add). What a device still
        does with that memory must have ended. Errors of dtype, shape and missing elements come with run()."""
        self._wanted.add(
            name, dtype, shape, address, offset=offset, length=length, strides=strides, device=device, keep=keep
        )

    def add_slice(self, index: int, address: int, keep: Any = None) -> None:
        """Asks for exactly one saved slice (Slice.index), dense."""
        _lib.call("cairn_restore_add_slice", self._open(), index, address)
        self._keep.append(keep)

    def run(self, timeout: float = 3600.0, progress: Optional[Callable[[int, int], None]] = None) -> None:
        """Reads everything that was asked for; only bytes whose checksums verified arrive. After an error the contents of the
        targets are undefined, and run() may be called again. progress: called about ten times a second, in this thread, with
        bytes done and of all; what it raises, or Ctrl-C, ends the read."""
        self._hand_over()
        read = _Read(self._open(), _ms(timeout))
        try:
            threading.Thread(target=read.run, name="cairn-read", daemon=True).start()
            ended = False
            while not ended:
                ended = read.ended.wait(_REPORT_S)
                if progress and read.total:
                    progress(read.done, read.total)
        finally:
            read.end()
        _lib.check(read.code, read.err)
        self._keep.clear()

    def _hand_over(self) -> None:
        """Tells libcairn what is wanted."""
        wanted, self._wanted = self._wanted, Table()
        if not len(wanted):
            return
        self._keep.append(wanted)
        _lib.call("cairn_restore_add_all", self._open(), wanted.pack(), len(wanted))

    def close(self) -> None:
        """Gives the checkpoint back; it may be deleted from now on."""
        self._session._free(self._handle)
        self._keep.clear()

    def __enter__(self) -> "Restore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_handle") and _ours(self):
            self.close()


class _Read:
    """cairn_restore_run() for a thread of its own, so that the caller's can run Python's signal handlers meanwhile: a
    callback cannot, since what a handler raises on the way into it would be lost. The thread is not joined: a join()
    that Ctrl-C interrupts may take the thread for ended although it runs."""

    def __init__(self, restore: c_void_p, timeout_ms: int) -> None:
        self._restore, self._timeout_ms = restore, timeout_ms
        self._lock = threading.Lock()  # of the next two
        self._begun = self._given_up = False
        self.done = self.total = self.code = 0
        self.err = _lib.CError()
        self.ended = threading.Event()

    def run(self) -> None:
        with self._lock:
            if self._given_up:
                return
            self._begun = True
        try:
            tell = _lib.PROGRESS(self._tell)
            err = byref(self.err)
            self.code = _lib.lib().cairn_restore_run(self._restore, self._timeout_ms, tell, None, err)
        finally:
            self.ended.set()

    def _tell(self, _: object, done: int, total: int) -> int:
        self.done, self.total = done, total
        return 1 if self._given_up else 0

    def end(self) -> None:
        """Nothing is written to the targets any more when this returns: within one report after a Ctrl-C."""
        while True:
            try:
                with self._lock:
                    self._given_up = True
                if self._begun:
                    self.ended.wait()
                return
            except KeyboardInterrupt:
                continue
