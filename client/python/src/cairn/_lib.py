# SPDX-License-Identifier: Apache-2.0
"""libcairn through ctypes: its structures, its functions, and where it is found.

The structures repeat include/cairn/cairn.h field by field; libcairn refuses a `size` it does not know, so a mismatch is an
error and never a wrong byte. ctypes releases the interpreter lock for the time of every call.
"""
from __future__ import annotations

import ctypes
import functools
import os
import pathlib
from ctypes import POINTER, byref, c_char, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p

from . import errors

LATEST, LATEST_FINITE = 2**64 - 1, 2**64 - 2
_SONAME = "libcairn.so.0"

# enum cairn_dtype, by safetensors' names.
DTYPES = {
    "BYTES": 1, "BOOL": 2, "U8": 3, "I8": 4, "U16": 5, "I16": 6, "U32": 7, "I32": 8, "U64": 9, "I64": 10,
    "F8_E4M3": 11, "F8_E5M2": 12, "F8_E8M0": 13, "F8_E4M3FNUZ": 14, "F8_E5M2FNUZ": 15, "F16": 16, "BF16": 17,
    "F32": 18, "F64": 19, "C64": 20,
}
DTYPE_NAMES = {number: name for name, number in DTYPES.items()}
ITEM_SIZES = {
    "BYTES": 1, "BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1, "F16": 2, "BF16": 2,
    "F32": 4, "F64": 8, "C64": 8,
}

TIMEOUT, UNAVAILABLE, INTR = -4, -12, -19  # enum cairn_code: those that a wait looks at itself
OBSERVER, TAKE_OVER, TRACK, SOURCE_SUMS, PACK = 1, 2, 4, 8, 16  # enum cairn_session_flags
DEVICE_WRITES, VOLATILE, COMMON = 1, 2, 4  # enum cairn_tensor_flags
HOST = 0  # cairn_tensor.device
ON_BUSY = {"fail": 0, "wait": 1}  # enum cairn_on_busy
STATES = {"snapshot": 1, "durable": 2, "committed": 3}  # enum cairn_save_state
QUERIES = {"status": 1, "list": 2, "show": 3, "verify": 4}  # enum cairn_query_kind
COMMANDS = {"pin": 1, "unpin": 2, "delete": 3, "retain": 4, "repair": 10, "scrub": 11, "rebuild": 12}



def cuda(ordinal: int) -> int:
    """CAIRN_CUDA(ordinal): a device as cairn_tensor and cairn_stream name it."""
    return 0x10000 + ordinal


PROGRESS = ctypes.CFUNCTYPE(c_int, c_void_p, c_uint64, c_uint64)  # cairn_progress_fn


class CError(ctypes.Structure):
    """struct cairn_error"""

    _fields_ = [("size", c_size_t), ("code", c_int), ("sys_errno", c_int), ("message", c_char * 496)]

    def __init__(self) -> None:
        super().__init__(size=ctypes.sizeof(CError))


class SessionOptions(ctypes.Structure):
    """struct cairn_session_options"""

    _fields_ = [
        ("size", c_size_t), ("job", c_char_p), ("rank", c_uint32), ("world_size", c_uint32), ("arena_bytes", c_uint64),
        ("start_id", c_char_p), ("socket_path", c_char_p), ("timeout_ms", c_uint32), ("copy_threads", c_uint32),
        ("flags", c_uint32), ("device_staging_bytes", c_uint64), ("plugin_path", c_char_p),
    ]


class CTensor(ctypes.Structure):
    """struct cairn_tensor"""

    _fields_ = [
        ("size", c_size_t), ("name", c_char_p), ("dtype", c_int), ("ndim", c_uint32), ("shape", POINTER(c_uint64)),
        ("offset", POINTER(c_uint64)), ("length", POINTER(c_uint64)), ("stride_bytes", POINTER(ctypes.c_int64)),
        ("data", c_void_p), ("flags", c_uint32), ("device", c_uint32),
    ]


class CStream(ctypes.Structure):
    """struct cairn_stream"""

    _fields_ = [("device", c_uint32), ("pad", c_uint32), ("stream", c_void_p)]


class SaveOptions(ctypes.Structure):
    """struct cairn_save_options"""

    _fields_ = [
        ("size", c_size_t), ("step", c_uint64), ("on_busy", c_int), ("timeout_ms", c_uint32),
        ("streams", POINTER(CStream)), ("nstreams", c_uint32),
    ]


class SaveInfo(ctypes.Structure):
    """struct cairn_save_info"""

    _fields_ = [
        ("size", c_size_t), ("bytes", c_uint64), ("copied_bytes", c_uint64), ("tracked_bytes", c_uint64),
        ("tracking", c_char * 256), ("device_bytes", c_uint64), ("unchanged_bytes", c_uint64),
        ("staged_bytes", c_uint64), ("packed_bytes", c_uint64),
    ]


class CheckpointInfo(ctypes.Structure):
    """struct cairn_checkpoint_info"""

    _fields_ = [
        ("size", c_size_t), ("step", c_uint64), ("incarnation", c_uint64), ("world_size", c_uint32),
        ("slices", c_uint64), ("bytes", c_uint64),
    ]


_ERR = POINTER(CError)
_PTR = POINTER(c_void_p)
# name: (result, arguments)
_FUNCTIONS = {
    "cairn_session_open": (c_int, [POINTER(SessionOptions), _PTR, _ERR]),
    "cairn_session_close": (None, [c_void_p]),
    "cairn_session_fd": (c_int, [c_void_p]),
    "cairn_session_incarnation": (c_uint64, [c_void_p]),
    "cairn_session_arena_bytes": (c_uint64, [c_void_p]),
    "cairn_session_use_device": (c_int, [c_void_p, c_uint32, _ERR]),
    "cairn_save_fence": (c_int, [c_void_p, c_uint32, c_void_p, _ERR]),
    "cairn_save_begin": (c_int, [c_void_p, POINTER(SaveOptions), _PTR, _ERR]),
    "cairn_save_add": (c_int, [c_void_p, c_void_p, _ERR]),
    "cairn_save_add_all": (c_int, [c_void_p, c_void_p, c_uint64, _ERR]),
    "cairn_save_all": (c_int, [c_void_p, POINTER(SaveOptions), c_void_p, c_uint64, _PTR, _ERR]),
    "cairn_save_stage": (c_int, [c_void_p, _ERR]),
    "cairn_save_place": (c_int, [c_void_p, c_uint64, _PTR, _ERR]),
    "cairn_save_seal": (c_int, [c_void_p, _ERR]),
    "cairn_save_wait": (c_int, [c_void_p, c_int, c_uint32, _ERR]),
    "cairn_save_info": (c_int, [c_void_p, POINTER(SaveInfo)]),
    "cairn_save_free": (None, [c_void_p]),
    "cairn_latest": (c_int, [c_void_p, POINTER(c_uint64), _ERR]),
    "cairn_restore_open": (c_int, [c_void_p, c_uint64, c_uint32, _PTR, _ERR]),
    "cairn_restore_info": (c_int, [c_void_p, POINTER(CheckpointInfo)]),
    "cairn_restore_slice": (c_int, [c_void_p, c_uint64, POINTER(c_uint32), POINTER(CTensor)]),
    "cairn_restore_find": (c_int, [c_void_p, c_char_p, POINTER(CTensor), _ERR]),
    "cairn_restore_add_all": (c_int, [c_void_p, c_void_p, c_uint64, _ERR]),
    "cairn_restore_add_slice": (c_int, [c_void_p, c_uint64, c_void_p, _ERR]),
    "cairn_restore_run": (c_int, [c_void_p, c_uint32, PROGRESS, c_void_p, _ERR]),
    "cairn_restore_free": (None, [c_void_p]),
    "cairn_query": (c_int, [c_void_p, c_int, c_char_p, c_uint64, c_uint32, _PTR, _ERR]),
    "cairn_command": (c_int, [c_void_p, c_int, c_char_p, c_uint64, c_char_p, c_uint32, _PTR, _ERR]),
}


def _candidates() -> list[str]:
    """Where the library may be: $CAIRN_LIBRARY alone if it is set; else the package's own, then the system's."""
    told = os.environ.get("CAIRN_LIBRARY")
    if told:
        return [told]
    own = pathlib.Path(__file__).parent / "lib" / _SONAME
    return [str(own), _SONAME] if own.exists() else [_SONAME]


def _open() -> ctypes.CDLL:
    tried = []
    for path in _candidates():
        try:
            return ctypes.CDLL(path)
        except OSError as e:
            tried.append(f"{path}: {e}")
    raise errors.UnavailableError(
        f"load libcairn ({'; '.join(tried)}): install Cairn (cmake --install), or set CAIRN_LIBRARY to {_SONAME}'s path"
    )


@functools.lru_cache(maxsize=None)
def lib() -> ctypes.CDLL:
    """The library, loaded and typed at the first call. Raises UnavailableError when there is none."""
    library = _open()
    for name, (result, arguments) in _FUNCTIONS.items():
        try:
            function = getattr(library, name)
        except AttributeError:
            raise errors.UnsupportedError(
                f"load libcairn: {library._name} has no {name}: it is older than this package; install both from one tree"
            ) from None
        function.restype = result
        function.argtypes = arguments
    return library


def check(code: int, err: CError) -> None:
    """Raises the error of a negative code."""
    if code < 0:
        raise errors.of_code(code, err.message.decode("utf-8", "replace"), err.sys_errno)


def call(name: str, *arguments: object) -> None:
    """Calls a function whose last argument is a struct cairn_error, and raises what it reports."""
    err = CError()
    check(getattr(lib(), name)(*arguments, byref(err)), err)


def address_of(buffer: bytearray) -> int:
    """Where a buffer's bytes lie. It cannot be resized while somebody else holds a view of it."""
    return ctypes.addressof((c_char * len(buffer)).from_buffer(buffer))


def free(pointer: c_void_p) -> None:
    """Frees what libcairn gave to its caller: malloc's memory."""
    libc = ctypes.CDLL(None)
    libc.free.argtypes = [c_void_p]
    libc.free(pointer)
