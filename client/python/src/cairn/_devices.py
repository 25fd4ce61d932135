# SPDX-License-Identifier: Apache-2.0
"""Devices of a Checkpointer: which of them libcairn reads and writes itself, and who keeps what is being
copied from being changed.

A save of tensors on a GPU returns before they are copied. Until then
- nothing may write to them: a fence makes a stream wait for the copies. It stands at the end of save(), or,
  where copies are to overlap forward and backward, before the optimizer's step;
- what forward and backward change themselves is volatile then: it is copied aside on the device first;
- their memory is held (SaveHandle).
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Optional, Union

from . import _tree
from ._layout import Layout, Volatile, leaf_tag
from .errors import Error, InvalidError, OutOfMemoryError, StorageError, TooLargeError, UnsupportedError
from .session import Session

_LOG = logging.getLogger("cairn")
_STAGING = 256 << 20  # libcairn's default of device_staging_bytes
_VOLATILE = ("buffers", "all", "none")
_OVERLAP = ("auto", True, False)


class Devices:
    """job: for messages. overlap, volatile, staging: as Checkpointer has them."""

    def __init__(
        self, job: str, overlap: Union[str, bool], volatile: Union[str, Callable[[str], bool]], staging: int
    ) -> None:
        if overlap not in _OVERLAP:
            raise InvalidError(f'overlap is {overlap!r}: "auto", True or False is wanted')
        if volatile not in _VOLATILE and not callable(volatile):
            raise InvalidError(f'volatile is {volatile!r}: "buffers", "all", "none" or a function is wanted')
        self._job, self._overlap, self._volatile = job, overlap, volatile
        self._staging = staging or _STAGING
        self._missing: Optional[str] = None  # why libcairn does not reach devices
        self._at_once: Optional[str] = None  # why the fence is not left to the optimizer although it could be
        self._in_graph = False  # a fence of the open session was captured into a CUDA graph
        self._attached: list[Any] = []
        self.ready: list[int] = []  # of the open session

    # ---- which devices ----

    @property
    def direct(self) -> bool:
        """Whether tables name memory of devices."""
        return self._missing is None

    def use(self, session: Session, devices: Iterable[int]) -> bool:
        """Makes devices ready. False, after one warning: their tensors have to go through torch's copies."""
        try:
            for device in devices:
                if self.direct and device not in self.ready:
                    session.use_device(device)
                    self.ready.append(device)
        except (UnsupportedError, OutOfMemoryError, StorageError) as e:
            self._do_without(e)
        return self.direct

    def use_anew(self, session: Session, devices: Iterable[int]) -> bool:
        """The same of a session that may be another one than before."""
        self.closed()
        return self.use(session, devices)

    def _do_without(self, error: Error) -> None:
        self._missing = str(error)
        self._say(f"tensors on devices are copied by torch, one after the other: {error}")

    def closed(self) -> None:
        """The session is."""
        self.ready = []

    def reopened(self) -> None:
        """Another session goes on: a graph's fence waits for copies of the one in which it was captured."""
        if self._in_graph and self.is_left:
            self._put_at_once(
                "The state has grown, and a fence that was captured into a CUDA graph before holds back "
                "nothing any more: give arena= room for the largest state, or prepare() that one before "
                "the capture"
            )
        self._in_graph = False

    def _say(self, text: str) -> None:
        text = f"job {self._job}: {text}"
        _LOG.warning(text)
        warnings.warn(text, RuntimeWarning, stacklevel=6)

    # ---- who puts the fence ----

    def attach(self, optimizer: Any) -> None:
        """An optimizer before whose steps fence() is called."""
        self._attached.append(optimizer)

    def detach(self) -> None:
        """None of them any more."""
        self._attached.clear()

    @property
    def is_left(self) -> bool:
        """Whether the fence is left to optimizers, or to the program."""
        return self._at_once is None and (
            self._overlap is True or (self._overlap == "auto" and bool(self._attached))
        )

    def mode(self, state: Mapping[Any, Any], before: Optional[Layout] = None) -> tuple[Any, ...]:
        """What a layout depends on besides the state. before: an earlier layout."""
        if before is not None and before.is_promise_about(state):
            return self.direct, self.is_left, len(self._attached), before.mode[-1]
        if self.is_left and self._overlap == "auto":
            self._look_for_others(state)
        objects = tuple(k for k, v in state.items() if _is_object(v)) if self.is_left else ()
        return self.direct, self.is_left, len(self._attached), objects

    def _look_for_others(self, state: Mapping[Any, Any]) -> None:
        others = [k for k, v in state.items() if _is_optimizer(v) and not _among(v, self._attached)]
        if others:
            self._put_at_once(
                f"state_dict[{others[0]!r}] is an optimizer that was not attached: attach() it too, or it "
                f"would change tensors before they are copied"
            )

    def _put_at_once(self, why: str) -> None:
        self._at_once = why
        self._say(f"work on the GPU waits for the copies of each save from now on. {why}")

    def learn(self, error: Error, layout: Layout) -> None:
        """After a save that was refused: the next one goes another way, where there is one."""
        if isinstance(error, TooLargeError) and layout.volatile_bytes and self.is_left:
            self._put_at_once(self._too_volatile(layout, str(error)))
        elif layout.devices:
            self.refused(error)

    def refused(self, error: Error) -> None:
        """As well, of tensors on devices: they may lie where a device's plugin cannot read them."""
        if isinstance(error, (InvalidError, UnsupportedError)) and "cuda:" in str(error):
            self._do_without(error)

    def look_at(self, layout: Layout) -> bool:
        """Whether the layout's volatile tensors fit; if not, after one warning, fences are put at once."""
        if not self.is_left or layout.volatile_bytes <= self._staging:
            return True
        self._put_at_once(self._too_volatile(layout, f"device_staging is {self._staging >> 20} MiB"))
        return False

    def _too_volatile(self, layout: Layout, why: str) -> str:
        return (
            f"{layout.volatile_bytes >> 20} MiB of tensors may be changed by forward or backward and have to "
            f"be copied aside on the device, where {why}: give device_staging=, or say with volatile= which "
            f"ones those are"
        )

    # ---- streams ----

    def streams(self, devices: Iterable[int]) -> dict[int, int]:
        """What writes the tensors of a save: of each device the current stream."""
        if not devices:
            return {}
        from . import _cuda

        return {device: _cuda.stream_of(device) for device in devices}

    def is_capturing(self) -> bool:
        """Whether work is being captured into a CUDA graph."""
        if not self.direct or "torch" not in sys.modules:
            return False
        from . import _cuda

        return _cuda.is_capturing()

    def fence(self, session: Optional[Session], stream: Any) -> None:
        """In one stream of the program's, or in the current one of each device."""
        from . import _cuda

        if self.is_capturing() and not self.ready:
            raise InvalidError(
                f"job {self._job}: a fence in a CUDA graph before anything was saved would hold back nothing: "
                f"call prepare(state), load(state) or save(step, state) before the capture"
            )
        at = dict([_cuda.named(stream)]) if stream is not None else self.streams(self.ready)
        for device, handle in at.items():
            if session and device in self.ready:
                session.fence(device, handle)
        self._in_graph = self._in_graph or self.is_capturing()

    # ---- what is volatile ----

    def volatile(self, state: Mapping[Any, Any]) -> Optional[Volatile]:
        """For a layout of this state, which has the objects themselves at its top; None: nothing is."""
        rule = self._volatile
        if not self.is_left or rule == "none":
            return None
        if rule == "all":
            return lambda path, local: True
        if callable(rule):
            told = rule
            return lambda path, local: bool(told(_tree.name_of(path)))
        return self._unknown(state)

    def _unknown(self, state: Mapping[Any, Any]) -> Volatile:
        """Of modules what is no parameter; and of tensors that come in no module and no optimizer, those that no
        attached optimizer writes to: whatever else does may do it before the fence."""
        from . import _torch

        params = {key: _torch.memory_of_parameters(v) for key, v in state.items() if _torch.is_module(v)}
        optimizers = {key for key, v in state.items() if _is_optimizer(v)}
        fenced = set().union(*map(_torch.memory_written_by, self._attached)) if self._attached else None

        def is_volatile(path: _tree.Key, local: Any) -> bool:
            if path[0] in params:  # by memory: hooks of a state dict may give buffers other names
                return local.data_ptr() not in params[path[0]]
            return path[0] not in optimizers and fenced is not None and local.data_ptr() not in fenced

        return is_volatile


def hooked(optimizer: Any) -> Any:
    """The optimizer whose step runs hooks: what it wraps, where it is a wrapper that runs none (as
    Accelerate's)."""
    inner = getattr(optimizer, "optimizer", None)
    return inner if inner is not None and not hasattr(optimizer, "_optimizer_step_pre_hooks") else optimizer


def _among(value: Any, those: list[Any]) -> bool:
    return any(value is other or getattr(value, "optimizer", None) is other for other in those)


def _is_object(value: Any) -> bool:
    """No dict and no tensor: it is asked what it holds."""
    return not isinstance(value, dict) and leaf_tag(type(value)) is None and hasattr(value, "state_dict")


def _is_optimizer(value: Any) -> bool:
    """A torch optimizer, or what looks like one."""
    return _is_object(value) and hasattr(value, "param_groups") and hasattr(value, "step")
