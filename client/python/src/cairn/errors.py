# SPDX-License-Identifier: Apache-2.0
"""Errors: one class for each code of libcairn (enum cairn_code), so that a caller can catch what it can handle.

Every message says what was tried, on what, and what to do. Several classes are also the built-in error that a Python
programmer would expect: `except ConnectionError` catches a daemon that does not run.
"""
from __future__ import annotations

import builtins


class Error(RuntimeError):
    """What libcairn refused or failed to do.

    code: the short stable name of the code ("timeout"), as in the tool's JSON. sys_errno: the errno behind it, or 0.
    """

    code = "unknown"

    def __init__(self, message: str, sys_errno: int = 0) -> None:
        super().__init__(message)
        self.sys_errno = sys_errno


class InvalidError(Error, ValueError):
    """The caller's input is wrong; the message names the culprit."""

    code = "inval"


class OutOfMemoryError(Error, MemoryError):
    """An allocation in this process failed."""

    code = "nomem"


class StorageError(Error):
    """The system refused an operation; sys_errno says why."""

    code = "io"


class TimeoutError(Error, builtins.TimeoutError):  # noqa: A001 - the code's own name
    """The deadline passed; the message names who was late."""

    code = "timeout"


class BusyError(Error):
    """No room now; trying again later can succeed."""

    code = "busy"


class TooLargeError(Error):
    """Does not fit the arena or a limit; trying again cannot succeed."""

    code = "too_large"


class NotFoundError(Error, LookupError):
    """No such job, checkpoint or tensor."""

    code = "not_found"


class ExistsError(Error):
    """Taken: a rank, a step, a name, a socket."""

    code = "exists"


class FencedError(Error):
    """A newer incarnation of the job has taken over."""

    code = "fenced"


class StalePinError(Error):
    """The job's resume step moved: load again before saving."""

    code = "stale_pin"


class CorruptError(Error):
    """A checksum or a structure does not verify; no byte of it was handed out."""

    code = "corrupt"


class UnavailableError(Error, ConnectionError):
    """The daemon, a peer or the metadata engine cannot be reached."""

    code = "unavailable"


class NoSpaceError(Error):
    """Storage is full."""

    code = "no_space"


class DeniedError(Error, PermissionError):
    """Credentials do not allow it."""

    code = "denied"


class ProtocolError(Error):
    """The other side broke the protocol or speaks another version."""

    code = "protocol"


class AbortedError(Error):
    """The save or checkpoint was dropped; the message says by what."""

    code = "aborted"


class ForkedError(Error):
    """Called in a forked child: only the process that opened a session may use it."""

    code = "forked"


class UnsupportedError(Error):
    """Known, but not in this version."""

    code = "unsupported"


class InterruptedError(Error, builtins.InterruptedError):  # noqa: A001 - the code's own name
    """A signal interrupted a wait; call again to go on waiting."""

    code = "intr"


# By enum cairn_code, from -1 down.
_CLASSES = (
    InvalidError, OutOfMemoryError, StorageError, TimeoutError, BusyError, TooLargeError, NotFoundError, ExistsError,
    FencedError, StalePinError, CorruptError, UnavailableError, NoSpaceError, DeniedError, ProtocolError, AbortedError,
    ForkedError, UnsupportedError, InterruptedError,
)


def of_code(code: int, message: str, sys_errno: int = 0) -> Error:
    """The error of a negative enum cairn_code."""
    index = -code - 1
    kind = _CLASSES[index] if 0 <= index < len(_CLASSES) else Error
    return kind(message, sys_errno)
