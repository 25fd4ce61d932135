# SPDX-License-Identifier: Apache-2.0
"""Checkpoint ids: which job and which step a caller of torch.distributed.checkpoint means."""
from __future__ import annotations

import os
import re
from typing import Optional, Union

from ..errors import InvalidError

CheckpointId = Union[int, str, "os.PathLike[str]", None]

_URL = re.compile(r"cairn://([^/]+)/([0-9]+)/?")
_MAX_STEP = 2**64 - 2


def parse(checkpoint_id: Union[int, str, "os.PathLike[str]"]) -> tuple[Optional[str], int]:
    """(job or None, step) of an id: a number, a string of digits, "cairn://JOB/STEP", or a path whose last number is the
    step ("runs/7/step_100.ckpt" is step 100). Raises InvalidError for what holds no step."""
    if isinstance(checkpoint_id, bool) or not isinstance(checkpoint_id, (int, str, os.PathLike)):
        raise InvalidError(f"checkpoint_id is {checkpoint_id!r}: {_WANTED}")
    if isinstance(checkpoint_id, int):
        return None, check_step(checkpoint_id)
    text = os.fsdecode(os.fspath(checkpoint_id))
    url = _URL.fullmatch(text)
    if url:
        return url[1], check_step(int(url[2]))
    numbers = re.findall("[0-9]+", text)
    if not numbers or "://" in text:
        raise InvalidError(f"checkpoint_id is {text!r}, which names no step: {_WANTED}")
    return None, check_step(int(numbers[-1]))


_WANTED = 'a step is wanted, as a number, "cairn://JOB/STEP", or a path whose last number is the step'


def url(job: Optional[str], step: Optional[int]) -> Optional[str]:
    """ "cairn://JOB/STEP", or None where one is not known."""
    return None if job is None or step is None else f"cairn://{job}/{step}"


def check_step(step: object) -> int:
    """The step, if it is one."""
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step <= _MAX_STEP:
        raise InvalidError(f"step is {step!r}: a whole number from 0 to {_MAX_STEP} is wanted")
    return step


def is_valid(checkpoint_id: object) -> bool:
    """Whether parse() takes it."""
    try:
        parse(checkpoint_id)  # type: ignore[arg-type]
    except InvalidError:
        return False
    return True
