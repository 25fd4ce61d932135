# SPDX-License-Identifier: Apache-2.0
"""The small file that stands where a framework expects its checkpoint.

Frameworks name a checkpoint by a path, look whether it exists, and remove it by its path. The state itself is
in Cairn; at the path lies a JSON file of some hundred bytes that says which checkpoint it is. It is written
when the snapshot is complete, before the checkpoint is committed: therefore it also names the checkpoint that
the path meant before, and a reader falls back to that one if the newer never came to be.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_LIMIT = 64 * 1024  # bytes: what is longer is no pointer
_KEEP = 2  # checkpoints a pointer names: the newest, and the one before it


@dataclass(frozen=True)
class Pointer:
    """One checkpoint of a job."""

    job: str
    step: int
    incarnation: int

    def __str__(self) -> str:
        return f"{self.job} step {self.step} (incarnation {self.incarnation})"


def write(path: str, newest: Pointer, earlier: Sequence[Pointer] = ()) -> None:
    """Replaces `path` by a pointer to `newest`, in one rename; `earlier` are fallbacks, newest first.

    Makes the directory. Does not wait for the disk: the pointer is a convenience, the catalog is Cairn's.
    Errors: OSError of the file system.
    """
    kept = [newest, *(each for each in earlier if each != newest)][:_KEEP]
    text = json.dumps(
        {
            "cairn": 1,
            "job": newest.job,
            "checkpoints": [{"step": each.step, "incarnation": each.incarnation} for each in kept],
            "note": f"the state is in Cairn: cairn restore {newest.job} {newest.step} --to DIRECTORY",
        },
        indent=1,
    )
    directory = os.path.dirname(os.path.abspath(path))
    os.makedirs(directory, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".cairn-", dir=directory)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text + "\n")
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read(path: str) -> list[Pointer]:
    """The checkpoints that the file names, newest first.

    Errors: FileNotFoundError; ValueError if the file is something else (its content is never executed).
    """
    with open(path, "rb") as file:
        raw = file.read(_LIMIT + 1)
    try:
        if len(raw) > _LIMIT:
            raise ValueError(f"longer than {_LIMIT} bytes")
        return _parse(json.loads(raw))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a pointer to a checkpoint in Cairn ({error}); load it with what wrote it, or bring it "
            "into the job with `cairn import`"
        ) from None


def read_if_any(path: str) -> list[Pointer]:
    """As read(), but an absent or foreign file is an empty list."""
    try:
        return read(path)
    except (OSError, ValueError):
        return []


def _parse(document: dict[str, Any]) -> list[Pointer]:
    if document.get("cairn") != 1:
        raise ValueError(f"version {document.get('cairn')!r}, not 1")
    job = document["job"]
    found = [
        Pointer(str(job), int(each["step"]), int(each["incarnation"])) for each in document["checkpoints"]
    ]
    if not found:
        raise ValueError("it names no checkpoint")
    return found
