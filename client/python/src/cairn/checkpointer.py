# SPDX-License-Identifier: Apache-2.0
"""cairn.Checkpointer: save and load the state dict of one rank of a training job.

    ckpt = cairn.Checkpointer("llm")
    state = {"model": model, "optimizer": optimizer, "step": 0}
    start = ckpt.load(state) or 0                  # None: no checkpoint yet
    for step in range(start + 1, steps + 1):
        train_one_step()
        if step % 100 == 0:
            ckpt.save(step, state)                 # returns after one copy into memory

Tensors on a GPU are copied behind save(): work on the GPU waits for that, the program does not. After
ckpt.attach(optimizer) only the optimizer's next step waits.

Times are in seconds, sizes in bytes.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Optional, Union

from . import _lib, launch
from ._devices import Devices, hooked
from ._layout import Layout, Replicated, leaf_tag
from ._load import Loader
from ._merge import Rename
from .errors import (
    AbortedError,
    BusyError,
    CorruptError,
    Error,
    ExistsError,
    FencedError,
    ForkedError,
    InvalidError,
    NotFoundError,
    StalePinError,
    StorageError,
    TimeoutError,
    TooLargeError,
    UnavailableError,
)
from .session import Restore, Save, Session

_MIB = 1 << 20
_LOG = logging.getLogger("cairn")
_RETRY_S = 0.05  # between two tries to reopen a session
_ON_BUSY = ("wait", "skip", "fail")
_INERT = {dict, collections.OrderedDict, list, tuple, str, int, float, bool, type(None)}  # no state_dict()
_STATES = {"sealed": 0, **_lib.STATES}
_ENDS = (AbortedError, FencedError, StalePinError, StorageError, CorruptError)  # of a save, for good


class SaveFailedWarning(RuntimeWarning):
    """A save failed and training goes on. Issued once for each kind of failure, until a save has succeeded
    again."""


class SaveHandle:
    """A save on its way. step: what was saved. Its checkpoint exists once it is committed, on all ranks
    alike. Any thread may use it."""

    def __init__(self, save: Save, memory: Optional[list[Any]] = None) -> None:
        """memory: what owns the tensors that devices are still copying; None: everything is copied."""
        self.step = save.step
        self._save: Optional[Save] = save
        # Of _save, which one thread at a time may use; again by a signal handler of the thread that waits.
        self._lock = threading.RLock()
        self._ended = False  # somebody wants to let go of _save: nobody begins to wait for it
        self._away = False  # the last look found no daemon that knows it
        self._reached = "sealed" if memory is not None else "snapshot"
        self._memory = memory
        self._failure: Optional[Error] = None

    def wait(self, state: str = "committed", timeout: float = 600.0) -> None:
        """Waits until this rank's part is on stable storage ("durable") or the checkpoint of all ranks exists
        ("committed"). Raises TimeoutError, AbortedError (why is in the message), UnavailableError. Ctrl-C
        ends it at once.
        """
        if state not in _lib.STATES:
            raise InvalidError(f"state is {state!r}: one of {', '.join(_lib.STATES)} is wanted")
        end = time.monotonic() + timeout
        while not self._wait_a_while(state, end, timeout):
            pass

    def _wait_a_while(self, state: str, end: float, timeout: float) -> bool:
        if not self._lock.acquire(timeout=min(max(0.0, end - time.monotonic()), threading.TIMEOUT_MAX)):
            raise TimeoutError(f"waited {timeout:g} s: step {self.step}: another thread waits for it too")
        try:
            if self._failure:
                raise self._failure
            if _STATES[self._reached] >= _STATES[state]:
                return True
            if self._save is None or self._ended:
                raise self._closed()
            reached = self._ask(self._save, state, end, timeout)
            if reached and _STATES[state] > _STATES[self._reached]:
                self._reached, self._memory = state, None
            return reached
        finally:
            self._lock.release()

    def _ask(self, save: Save, state: str, end: float, timeout: float) -> bool:
        try:
            return save.wait_a_while(state, end, timeout)
        except _ENDS as e:
            self._failure, self._memory = e, None
            raise
        except Error:
            if self._save is None:  # a signal handler has closed the Checkpointer meanwhile
                raise self._closed() from None
            raise

    def _closed(self) -> TimeoutError:
        return TimeoutError(
            f"step {self.step} was {self._reached} when its session was closed; it goes on in the "
            f"daemon, and latest() of a later start, or `cairn ls`, tells what became of it"
        )

    def is_reached(self, state: str = "committed") -> bool:
        """As wait(), but only looks. False also where nobody can tell any more."""
        try:
            self.wait(state, 0)
        except (TimeoutError, UnavailableError):
            return False
        return True

    def _is_copying(self) -> bool:
        """Whether devices still copy its tensors; lets go of their memory if not."""
        if self._memory is not None and not self._ended:
            with contextlib.suppress(Error):  # who waits for the save, or saves next, is told
                self.is_reached("snapshot")
        return self._memory is not None

    @property
    def committed(self) -> bool:
        """Whether the checkpoint exists by now. Raises what made the save fail."""
        return self.is_reached("committed")

    @property
    def _is_begun(self) -> bool:
        """Whether libcairn knows of it: what a signal handler interrupts may be about to begin."""
        return self._save is None or self._save.is_begun

    def info(self) -> dict[str, Any]:
        """What the save copied, see Save.info(); empty once its session is closed or it is known to be
        committed."""
        with self._lock:
            return self._save.info() if self._save else {}

    def _let_go(self) -> None:
        """A thread that waits ends with TimeoutError, within the two seconds of Save.wait_a_while()."""
        self._ended = True
        with self._lock:
            save, self._save = self._save, None
        if save:
            save.close()


def _drop_frames(error: Optional[BaseException]) -> None:
    """An error that is kept keeps no state: its frames have whole state dicts in them."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


class Checkpointer:
    """Saves and loads the state of one rank of a job, through the node's cairnd.

    job: the job's name, [A-Za-z0-9._-], the same on all ranks and at every start. rank, world_size: from
    torch.distributed or the launcher where they are not given (cairn.launch). start_id: names this start of
    the job, equal on all ranks; from the launcher by default, and new for each Checkpointer in a world of
    one.

    arena: bytes of shared memory that snapshots are copied to. "auto" takes a quarter more than one save
    needs, faulted in at the first use, and grows when the state has grown: that save then first waits for
    those under way.
    on_busy: when earlier saves still fill the arena, "wait" for room (up to timeout), "skip" this step
    (save() returns None), or "fail". A step that one rank skips is no checkpoint for any rank.
    replicated: plain tensors are each rank's own by default. True, or a function of a tensor's name, says
    that all ranks hold the same: then each stores a share. DTensors say themselves what is sharded or replicated.
    common: as replicated, but each rank stores its own whole, and before the commit they are compared, bit for
    bit (docs/numerics.md).
    copy_threads: threads of the copy. track: copy only what was written since the last save (CAIRN_TRACK in
    cairn.h).
    pickle: what has no safe form is pickled; load() then needs allow_pickle=True.
    raise_errors: save() raises what failed. By default it warns (SaveFailedWarning), counts (failures,
    last_error) and returns None, since training can go on without a checkpoint.
    timeout: for opening, for each exchange with the daemon, and for room in the arena.
    take_over: start although another start of the job lives; its ranks are fenced.

    Tensors on GPUs (docs/python.md): overlap: "auto" has the GPU's later work wait for the copies, from the
    end of save() on; after attach() only from the optimizer's next step on. True: the program calls fence()
    itself before anything writes to what was saved. False: always at the end of save().
    volatile: what forward and backward change already, and is therefore copied aside on the GPU where the
    fence comes later: "buffers" of the modules in the state, and tensors of which nobody knows what they are;
    "all", "none", or a function of a tensor's name. device_staging: bytes of each GPU's memory for that, and
    for small tensors; 0 for 256 MiB. source_sums: GPUs give checksums of what they read, which are compared
    with what has arrived. pack: GPUs pack tensors before they copy them, where that measures faster
    (CAIRN_PACK in cairn.h; not with track).

    The session opens at the first use. Threads take turns: one call at a time, handles apart. A signal
    handler may save while it interrupts another call, but close() raises InvalidError there. After a fork
    the child must not use it (ForkedError), and is not disturbed by it: data-loader workers may inherit it.
    """

    def __init__(
        self,
        job: str,
        rank: Optional[int] = None,
        world_size: Optional[int] = None,
        *,
        arena: Union[str, int] = "auto",
        on_busy: str = "wait",
        replicated: Replicated = False,
        common: Replicated = False,
        socket: Optional[str] = None,
        timeout: float = 30.0,
        copy_threads: int = 1,
        track: bool = False,
        start_id: Optional[str] = None,
        pickle: bool = False,
        raise_errors: bool = False,
        take_over: bool = False,
        overlap: Union[str, bool] = "auto",
        volatile: Union[str, Callable[[str], bool]] = "buffers",
        device_staging: int = 0,
        source_sums: bool = False,
        pack: bool = False,
    ) -> None:
        self._session: Optional[Session] = None
        self._had_session = False  # ever: another one knows nothing of its fences and its pin
        self._pid = os.getpid()
        if not isinstance(job, str) or not launch.is_name(job):
            raise InvalidError(f"job is {job!r}: 1 to 128 characters of [A-Za-z0-9._-] are wanted")
        if on_busy not in _ON_BUSY:
            raise InvalidError(f'on_busy is {on_busy!r}: "wait", "skip" or "fail" is wanted')
        if arena != "auto" and (isinstance(arena, bool) or not isinstance(arena, int) or arena <= 0):
            raise InvalidError(f'arena is {arena!r}: "auto" or a number of bytes is wanted')
        self.job = job
        self.launch = launch.find(rank, world_size, start_id)
        self.failures = 0
        self.skipped = 0
        self.last_error: Optional[Error] = None
        self._arena_asked = None if arena == "auto" else int(arena)
        self._arena = 0  # of the open session
        self._on_busy, self._pickle = on_busy, pickle
        self._replicated, self._common = replicated, common
        self._raise_errors, self._timeout = raise_errors, timeout
        self._options: dict[str, Any] = dict(
            rank=self.launch.rank,
            world_size=self.launch.world_size,
            start_id=self.launch.start_id,
            socket=socket,
            timeout=timeout,
            copy_threads=copy_threads,
            track=track,
            take_over=take_over,
            device_staging=device_staging,
            source_sums=source_sums,
            pack=pack,
        )
        self._devices = Devices(job, overlap, volatile, device_staging)
        self._hooks: list[Any] = []  # of optimizers
        self._layout: Optional[Layout] = None
        self._static = False  # what prepare() was promised
        self._under_way: list[SaveHandle] = []
        self._warned: set[str] = set()
        self._resumed: Optional[tuple[Optional[int]]] = None  # what latest() said in this start
        self._lock = threading.RLock()
        self._saved = False  # whether a save has begun
        self._calls = 0  # under way: more than one where a signal handler calls in the middle of another

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        with self._lock:
            self._calls += 1
            try:
                yield
            finally:
                self._calls -= 1

    @property
    def rank(self) -> int:
        """This process's rank."""
        return self.launch.rank

    @property
    def world_size(self) -> int:
        """Ranks of this start."""
        return self.launch.world_size

    @property
    def incarnation(self) -> int:
        """The fencing number this start saves under. Opens the session if it is not open. Raises what
        fails."""
        self._check_process()
        with self._lock:
            return self._open(0).incarnation

    def observe(self) -> Session:
        """A new session without a rank at the same daemon, for queries and commands, also from another
        thread. The caller's: close it. Raises what fails."""
        return Session(self.job, observer=True, socket=self._options["socket"], timeout=self._timeout)

    # ---- save ----

    def save(
        self,
        step: int,
        state_dict: Mapping[Any, Any],
        *,
        wait: Optional[str] = None,
        timeout: Optional[float] = None,
    ) -> Optional[SaveHandle]:
        """Copies the state into the arena; when this returns it may change. The daemon does the rest.

        step: a number from 0, higher than those saved before; each step once. state_dict: nested dicts, lists
        and tuples of tensors, arrays and plain values (docs/python-state.md); at the top, objects with
        state_dict() and load_state_dict() stand for their state. wait: "durable" or "committed" waits for
        that too, up to timeout (600 s by default).

        Returns a handle; None when the step was skipped or has failed. What fails is raised with wait or
        raise_errors=True, else warned about and counted. Raises InvalidError for a wrong step or wait in any
        case.
        """
        self._check_process()
        if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < _lib.LATEST:
            raise InvalidError(f"step is {step!r}: a whole number from 0 is wanted")
        if wait not in (None, "snapshot", "durable", "committed"):
            raise InvalidError(f'wait is {wait!r}: "durable" or "committed" is wanted, or None')
        with self._turn():
            try:
                handle = self._save(step, state_dict)
            except Error as e:
                self._failed(step, e, wait is not None)
                return None
            except Exception as e:  # noqa: BLE001 - whatever a tensor's own code raises must not end the training
                error = Error(f"{type(e).__name__}: {e}")
                error.__cause__ = e
                self._failed(step, error, wait is not None)
                return None
            if handle is None:
                self.skipped += 1
                return None
            self._look_at_others(handle)
        if wait:
            self._wait(handle, wait, 600.0 if timeout is None else timeout)
        return handle

    def _wait(self, handle: SaveHandle, state: str, timeout: float) -> None:
        """What has failed is counted now; what only takes longer may still come."""
        try:
            handle.wait(state, timeout)
        except (TimeoutError, UnavailableError):
            raise
        except Error as e:
            with self._lock:
                self._forget(handle)
                self._failed(handle.step, e, True)

    def _save(self, step: int, state_dict: Mapping[Any, Any]) -> Optional[SaveHandle]:
        """None: there is no room, and the step is to be skipped then."""
        self._copying()
        layout = self._layout_for(state_dict)
        try:
            self._saved = True
            session = self._open(layout.arena_bytes)  # BUSY from here is another start of the job that lives
            if layout.devices and not self._devices.use(session, layout.devices):
                layout = self._layout_for(state_dict)
            try:
                return self._put(session, step, layout)
            except Error as e:  # the step is given up on all ranks: what can be done is for the next one
                self._devices.learn(e, layout)
                raise
        finally:
            layout.forget()
            self._layout = layout

    def _put(self, session: Session, step: int, layout: Layout) -> Optional[SaveHandle]:
        on_busy = "wait" if self._on_busy == "wait" else "fail"
        streams = self._devices.streams(layout.devices)
        memory = layout.memory_on_devices() if layout.devices else None
        noted: list[SaveHandle] = []

        def note(save: Save) -> None:
            """Before anything of it is copied: from then on copies go on whatever ends this call."""
            noted.append(SaveHandle(save, memory))
            self._under_way.append(noted[0])

        try:
            if layout.device_rows:
                self._save_staged(session, step, layout, on_busy, streams, note)
            else:
                session.save(step, layout.table, on_busy=on_busy, streams=streams, begun=note)
        except BusyError:
            if self._on_busy != "skip":
                raise
            return None
        finally:
            for handle in noted:
                if not handle._is_begun:
                    self._forget(handle)
                elif layout.devices and not self._devices.is_left:
                    self._put_fence([handle])
        return noted[0]

    @staticmethod
    def _save_staged(
        session: Session,
        step: int,
        layout: Layout,
        on_busy: str,
        streams: Mapping[int, int],
        note: Callable[[Save], None],
    ) -> None:
        """Tensors on devices that libcairn does not reach are copied straight to their places in the
        arena."""
        from . import _torch

        save = session.stage(step, layout.table, on_busy=on_busy, streams=streams)
        try:
            for row, tensor in layout.device_pieces():
                _torch.copy_in(tensor, save.place(row))
            note(save)
            save.seal()
        except BaseException as e:
            if isinstance(e, Error) or not save.is_begun:  # Ctrl-C may come behind the seal
                save.close()
            raise

    def _layout_for(self, state_dict: Mapping[Any, Any]) -> Layout:
        """The caller puts it back when it is done: a signal handler may save meanwhile."""
        mode = self._devices.mode(state_dict, self._layout)
        before, self._layout = self._layout, None
        layout = before if before is not None and before.mode == mode else None
        is_known = layout is not None and layout.is_promise_about(state_dict)
        state = state_dict if is_known else _states_of(state_dict, layout)
        if layout is not None and layout.is_promised:
            other = layout.repeat(state)
            if other is None:
                return layout
            self._broken(other)
        fits = layout is not None and layout.refresh(state)
        if layout is not None and not fits:
            state, watched = _states_of(state), state
            fits = state is not watched and layout.refresh(state)
        if layout is None or not fits:
            rule = self._devices.volatile(state_dict)
            shares = self.rank, self.world_size, self._replicated
            layout = Layout(state, *shares, self._pickle, before, self._devices.direct, rule, self._common)
            layout.mode = mode
        if state is not state_dict:
            layout.watch(state, {k: v for k, v in state_dict.items() if v is not state[k]})
        if not self._devices.look_at(layout):
            self._layout = layout
            return self._layout_for(state_dict)
        return self._promised(layout, state_dict) if self._static else layout

    def _promised(self, layout: Layout, state_dict: Mapping[Any, Any]) -> Layout:
        """With the promise of prepare(static=True), where it can be kept to."""
        state = _states_of(state_dict, layout)
        fits = layout.refresh(state)
        if fits and layout.promise(state, {k for k, v in state_dict.items() if v is not state[k]}):
            return layout
        self._static = False
        _LOG.info("job %s: each save looks at each tensor: nothing of this state can be promised", self.job)
        return layout if fits else self._layout_for(state_dict)

    def _broken(self, other: str) -> None:
        """What was promised is not so. other: empty where only the table does not fit."""
        if not other:
            return
        self._static = False
        text = (
            f"job {self.job}: prepare(static=True) was told that nothing would be replaced, but {other}: "
            f"from now on each save looks at each tensor, until prepare() is called again"
        )
        _LOG.warning(text)
        warnings.warn(text, RuntimeWarning, stacklevel=5)

    # ---- devices ----

    def attach(self, *optimizers: Any) -> None:
        """Leaves the fence to these optimizers: tensors on GPUs are copied while the next forward and
        backward run, and each step of one of them first makes its stream wait, and not the program. Give all
        that change what is saved. They need torch's register_step_pre_hook(). Raises InvalidError.

        An optimizer that steps within backward: call fence() before backward instead. One that is captured
        into a CUDA graph: prepare(), load() or save() before the capture.
        """
        optimizers = tuple(map(hooked, optimizers))
        for optimizer in optimizers:
            if not callable(getattr(optimizer, "register_step_pre_hook", None)):
                raise InvalidError(
                    f"a {type(optimizer).__name__} cannot be attached, since it has no "
                    f"register_step_pre_hook(): pass overlap=True and call fence() before it changes what was "
                    f"saved"
                )
        for optimizer in optimizers:
            self._hooks.append(optimizer.register_step_pre_hook(self._before_step))
            self._devices.attach(optimizer)

    def detach(self) -> None:
        """Takes attach() back: the fence is put now, and from now on at the end of each save."""
        self._check_process()
        with self._turn():
            self._devices.detach()
            for hook in self._hooks:
                hook.remove()
            self._hooks.clear()
            self.fence()

    def _before_step(self, *_: Any) -> None:
        if os.getpid() == self._pid:
            self.fence()

    def fence(self, stream: Any = None) -> None:
        """Work that is put into the stream from now on may change what was saved: on the GPU it waits for the
        copies of all saves so far, the program does not. stream: a torch.cuda.Stream; None for the current
        streams of all devices that were saved from. Costs nothing when nothing is being copied.

        While the stream is captured into a CUDA graph, each launch of the graph waits for the saves before
        it. Raises InvalidError there if nothing was prepared, loaded or saved before.
        """
        self._check_process()
        with self._turn():
            copying = self._copying()
            if copying or stream is not None or self._devices.is_capturing():
                self._put_fence(copying, stream)

    def _put_fence(self, copying: list[SaveHandle], stream: Any = None) -> None:
        """Where a fence cannot be had, this thread waits."""
        try:
            self._devices.fence(self._session, stream)
        except InvalidError:
            raise
        except Error as e:
            _LOG.warning("job %s: no fence, waiting for the copies instead: %s", self.job, e)
            late: Optional[Error] = None
            for handle in copying:
                try:
                    handle.wait("snapshot", self._timeout)
                except _ENDS:  # nothing of it is copied any more; it is counted when it is looked at
                    continue
                except Error as still:
                    late = late or still
            if late:
                raise late from e

    def _copying(self) -> list[SaveHandle]:
        """Saves whose tensors are still in use; memory of others is let go."""
        return [h for h in self._under_way.copy() if h._is_begun and h._is_copying()]

    def _forget(self, handle: SaveHandle) -> None:
        """In place: a signal handler may save in the middle of any line here."""
        with contextlib.suppress(ValueError):
            self._under_way.remove(handle)

    def prepare(self, state_dict: Mapping[Any, Any], *, static: bool = False) -> None:
        """What a first save of this state does besides saving: lays it out, opens the session and faults the
        arena in, loads what devices need and pins the arena for them. Raises what fails.

        static: a promise, as CUDA graphs want it: until prepare() or close() is called, the tensors of the
        modules, the optimizers and the large dicts and lists in the state stay the same objects in the same
        memory with the same shapes; no tensor, parameter group, layer or hook comes or goes. What they
        contain may change, and so may plain values (learning rates, counters) and what small entries of the
        state hold. Saves then look at 128 tensors each, in turn, and at the groups; the first difference is
        warned about (RuntimeWarning), and ends the promise. Until it is found the old memory is saved, which
        is held as long. Prepare after the optimizer's first step, and again after load().
        """
        self._check_process()
        with self._turn():
            self._static, self._layout = static, None if self._static else self._layout
            layout = self._layout_for(state_dict)
            layout.forget()
            self._layout = layout
            session = self._open(layout.arena_bytes)
            self._devices.use(session, layout.devices)

    # ---- what fails ----

    def _failed(self, step: int, error: Error, asked: bool) -> None:
        self.failures += 1
        self.last_error = error
        if asked or self._raise_errors:
            raise error
        self._warn(step, error)
        _drop_frames(error)

    def _warn(self, step: int, error: Error) -> None:
        text = f"job {self.job}, rank {self.rank}: step {step} was not saved, training goes on: {error}"
        if error.code in self._warned:
            _LOG.debug(text)
            return
        self._warned.add(error.code)
        _LOG.warning(text)
        warnings.warn(text, SaveFailedWarning, stacklevel=4)

    def _look_at_others(self, newest: SaveHandle) -> None:
        """Saves that failed behind our back are counted too. The daemon has just answered: who is lost now, and
        at the next look, is lost."""
        for handle in self._under_way.copy():
            if handle is newest or not handle._is_begun:
                continue
            try:
                handle.wait("committed", 0)
            except TimeoutError:  # also where another thread waits for it
                handle._away = False
            except Error as e:
                if isinstance(e, UnavailableError) and not handle._away:
                    handle._away = True  # the daemon may have gone again just now: asked once more next time
                    continue
                self.failures += 1
                self.last_error = e
                self._forget(handle)
                self._warn(handle.step, e)
                _drop_frames(e)
            else:
                self._warned.clear()
                handle._let_go()
                self._forget(handle)

    # ---- load ----

    def latest(self) -> Optional[int]:
        """The step that all ranks of this start resume from, or None when the job has no checkpoint. The
        first rank that asks fixes it for all, and for as long as this start lives. Warns when that is not the
        newest one: then an earlier run had the same start id. Raises what fails."""
        self._check_process()
        with self._lock:
            step = self._open(0).latest()
            is_first, self._resumed = self._resumed is None and not self._saved, (step,)
            if is_first:
                self._check_start_is_new(step)
            return step

    def _check_start_is_new(self, step: Optional[int]) -> None:
        """A launcher may name two runs alike (srun twice in one allocation, torchrun with a fixed --rdzv-id).
        What this start resumes from was then fixed by the first run, and is not what that has saved since."""
        try:
            with self.observe() as session:
                newest = session.latest()
        except Error:  # the next call will tell
            return
        if newest is None or newest == step:
            return
        found = "no checkpoint" if step is None else f"step {step}"
        warnings.warn(
            f"job {self.job}: the newest checkpoint is step {newest}, but this start resumes from {found}: "
            f"that was fixed when the first rank with the start id {self.launch.start_id} asked. If this is "
            f"another run, give it a start_id of its own",
            RuntimeWarning,
            stacklevel=3,
        )

    def load(
        self,
        state_dict: dict[Any, Any],
        step: Union[int, str, None] = "latest",
        *,
        strict: bool = True,
        rename: Rename = None,
        allow_pickle: bool = False,
        timeout: float = 3600.0,
    ) -> Optional[int]:
        """Fills a state dict from a checkpoint: tensors in place (of a DTensor this rank's part), other
        values into the given dicts and lists, objects at the top through load_state_dict(). Any world size
        reads any checkpoint.

        Where the given state has an empty dict or list, or None, the saved value is put whole, with new
        tensors on the processor: so the state of an optimizer that has not stepped yet is loaded. Of values
        that are no tensors a rank gets its own, or the first rank's where there was no such rank. Where one
        tensor is in two places of the state (tied), and the checkpoint has different ones there, the second
        place gets a tensor of its own, and a warning is logged.

        step: a number; "latest": what latest() says; "latest-finite": the newest whose tensors have no NaN and no Inf, as far
        as that is known; NotFoundError when there is none. strict: entries that are only on one side are an
        error; else they stay as they are. rename: names of the state -> names in the checkpoint, as a mapping
        (an entry holds for everything below it too) or a function. allow_pickle: run the code of pickled
        values; trust who saved them.

        Returns the step, or None when there is no checkpoint. Raises InvalidError, which lists what does not
        fit, before anything is changed; NotFoundError for a step that is not there; TimeoutError,
        CorruptError, UnavailableError: then the tensors' contents are undefined. Ctrl-C ends it within a
        fraction of a second.
        """
        self._check_process()
        if not isinstance(state_dict, dict):
            raise InvalidError(f"state_dict is a {type(state_dict).__name__}: a dict is wanted")
        state = _states_of(state_dict)
        with self._turn():
            copying = self._copying()
            if copying:  # what is read now must not get into saves that are still being copied
                self._put_fence(copying)
            restore = self._restore(step, state, timeout)
            if restore is None:
                return None
            with restore:
                what = self._what(restore.step)
                Loader(restore, self.rank, what, allow_pickle, timeout, reach=self._reaches).fill(
                    state, strict, rename
                )
                found = restore.step
        for key, value in state_dict.items():
            if _is_stateful(value):
                value.load_state_dict(state[key])
            elif value is not state[key]:
                state_dict[key] = state[key]
        for key in state.keys() - state_dict.keys():
            state_dict[key] = state[key]
        return found

    def load_tree(
        self, step: Union[int, str, None] = "latest", *, allow_pickle: bool = False, timeout: float = 3600.0
    ) -> Optional[dict[Any, Any]]:
        """The state dict as this rank saved it (or the first rank, where there was no such rank), in new
        tensors, each in full. None when there is no checkpoint. Raises as load()."""
        self._check_process()
        with self._turn():
            restore = self._restore(step, None, timeout)
            if restore is None:
                return None
            with restore:
                return Loader(restore, self.rank, self._what(restore.step), allow_pickle, timeout).make()

    def _reaches(self, device: int) -> bool:
        """Whether libcairn writes a device's memory itself."""
        assert self._session is not None
        return self._devices.direct and self._devices.use(self._session, [device])

    def _what(self, step: int) -> str:
        return f"step {step} of job {self.job}"

    def _restore(
        self, step: Union[int, str, None], state: Optional[dict[Any, Any]], timeout: float
    ) -> Optional[Restore]:
        number = _step_number(step)
        session = self._open(self._guess(state))
        if number is not None:
            return session.restore(number, min(timeout, 60.0))
        if self.latest() is None:
            return None
        try:
            return session.restore(None, min(timeout, 60.0))
        except NotFoundError:
            return None

    def _guess(self, state: Optional[dict[Any, Any]]) -> int:
        """What a save of this state would need, so that the arena need not grow at the first one."""
        if state is None or self._arena_asked or self._session:
            return 0
        try:
            layout = self._layout_for(state)
        except Error:  # what cannot be saved may be loaded all the same
            return 0
        layout.forget()
        self._layout = layout
        return layout.arena_bytes

    # ---- the session ----

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedError(
                f"this Checkpointer of job {self.job} belongs to process {self._pid}: a forked child "
                f"must not save or load with it"
            )

    def _check_alone(self, calls: int, what: str) -> None:
        """The session is not to be closed under a call that a signal handler has interrupted."""
        if self._calls > calls:
            raise InvalidError(
                f"job {self.job}: {what}: this signal handler has interrupted a save or load of the same "
                f"Checkpointer; let it set a flag, and do this in the training loop"
            )

    def _wanted_arena(self, need: int) -> int:
        if self._arena_asked is None:
            return -(-need * 5 // 4 // _MIB) * _MIB + 2 * _MIB
        if need > self._arena_asked:
            raise TooLargeError(
                f"one save needs {need // _MIB} MiB and the arena has {self._arena_asked // _MIB}: pass "
                f'arena={-(-need * 5 // 4 // _MIB) * _MIB} (a quarter more, to overlap saves) or arena="auto"'
            )
        return self._arena_asked

    def _open(self, need: int) -> Session:
        """The session, with an arena that one save of so many bytes fits into."""
        if self._session and need <= self._arena:
            return self._session
        wanted = self._wanted_arena(need)
        again, before = self._session is not None, self._had_session
        if again:
            self._check_alone(1, "save a larger state than before")
            self._close_session(self._timeout)
        self._session = (
            self._reopen(wanted) if again else Session(self.job, arena_bytes=wanted, **self._options)
        )
        self._arena = self._session.arena_bytes
        self._had_session = True
        if before:
            self._devices.reopened()
        if before and self._resumed is not None:
            self._check_pin(self._session)
        return self._session

    def _reopen(self, wanted: int) -> Session:
        """The daemon may not have noticed yet that the old session is gone."""
        end = time.monotonic() + self._timeout
        while True:
            try:
                return Session(self.job, arena_bytes=wanted, **self._options)
            except (ExistsError, BusyError):
                if time.monotonic() > end:
                    raise
                time.sleep(_RETRY_S)

    def _check_pin(self, session: Session) -> None:
        """A new session knows nothing of what the one before has loaded."""
        assert self._resumed is not None
        step = session.latest()
        if step != self._resumed[0]:
            was, self._resumed = self._resumed[0], None
            raise StalePinError(
                f"job {self.job}: the step to resume from was {was} and is {step} now: load it before saving"
            )

    def _close_session(self, timeout: float) -> None:
        """Waits for what is under way, then lets it go; it goes on in the daemon."""
        end = time.monotonic() + timeout
        try:
            for handle in self._under_way.copy():
                self._settle(handle, max(0.0, end - time.monotonic()))
        finally:
            for handle in self._under_way:
                handle._let_go()
            session, self._session, self._arena = self._session, None, 0
            self._devices.closed()
            if session:
                session.close()  # which waits for what devices copy
            for handle in self._under_way:
                handle._memory = None
            self._under_way.clear()

    def _settle(self, handle: SaveHandle, timeout: float) -> None:
        try:
            handle.wait("committed", timeout)
        except TimeoutError as e:
            _LOG.warning(
                "job %s: closed before step %d was committed; it goes on in the daemon: %s",
                self.job,
                handle.step,
                e,
            )
        except Error as e:
            self.failures += 1
            self.last_error = e
            self._warn(handle.step, e)
            _drop_frames(e)

    def close(self, timeout: Optional[float] = None) -> None:
        """Waits up to timeout (the Checkpointer's by default) until the saves under way are committed, so
        that one that fails is not missed, and closes the session. What is not committed by then goes on in
        the daemon. May be called twice.
        """
        self._check_process()
        with self._lock:
            self._check_alone(0, "close")
            self._close_session(self._timeout if timeout is None else timeout)
            self._layout, self._static = None, False

    def __del__(self) -> None:
        """Of one that was not closed: handles that the program has go on, and so do the copies."""
        session = getattr(self, "_session", None)
        if session is not None:
            for handle in self._under_way:
                session.hold(handle._memory)

    def __reduce__(self) -> Any:
        raise TypeError(
            f"a Checkpointer (of job {self.job}) belongs to its process and cannot be pickled: keep it out "
            f"of data sets and of arguments of spawned processes"
        )

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if os.getpid() == self._pid:
            self.close(0.0 if kind else None)


def read(
    job: str,
    step: Union[int, str, None] = "latest",
    *,
    rank: int = 0,
    socket: Optional[str] = None,
    allow_pickle: bool = False,
    timeout: float = 3600.0,
) -> Optional[dict[Any, Any]]:
    """The state dict that a rank of a job saved, in new tensors, each in full; without being a rank of the
    job, so that a notebook can read what a running training saves. None when the job has no checkpoint.
    Raises as Checkpointer.load().
    """
    number = _step_number(step)
    with Session(job, observer=True, socket=socket) as session:
        try:
            restore = session.restore(number, min(timeout, 60.0))
        except NotFoundError:
            if number is not None:
                raise
            return None
        with restore:
            return Loader(
                restore, rank, f"step {restore.step} of job {job}", allow_pickle, timeout, rank > 0
            ).make()


def _step_number(step: Union[int, str, None]) -> Optional[int]:
    if step is None or step == "latest":
        return None
    if step == "latest-finite":
        return _lib.LATEST_FINITE
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < _lib.LATEST:
        raise InvalidError(f'step is {step!r}: "latest", "latest-finite" or a whole number from 0 is wanted')
    return step


def _is_stateful(value: Any) -> bool:
    return callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None))


def _states_of(state: Mapping[Any, Any], layout: Optional[Layout] = None) -> Any:
    """The state dict with the states of the objects at its top in their place; those that the layout watches
    stay."""
    if not isinstance(state, Mapping):
        raise InvalidError(f"state_dict is a {type(state).__name__}: a dict is wanted")
    kinds = set(map(type, state.values())) - _INERT
    if type(state) is dict and (all(map(leaf_tag, kinds)) or not any(map(_is_stateful, state.values()))):
        return state
    if hasattr(state, "_metadata"):
        return state  # Module.state_dict()
    watched = layout.is_watched if layout else lambda key, value: False
    return {k: v if watched(k, v) or not _is_stateful(v) else v.state_dict() for k, v in state.items()}
