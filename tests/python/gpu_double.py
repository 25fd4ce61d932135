# SPDX-License-Identifier: Apache-2.0
"""A double of a GPU under torch, for tests without one: torch's tensors of the processor, over memory of the CUDA runtime's double (tests/shim), which
libcairn and its CUDA plugin take for a device's. They are the real ones, and so is their order of work in streams; what torch does to such a tensor
itself happens at once, so programs under test put their work into the stream as `gpu.kernel()`.

Skips where this build has no such runtime.
"""
import ctypes
import gc
import os
import pathlib
import threading
import weakref

import pytest
import torch

from cairn import _cuda, _lib

BUILD = pathlib.Path(os.environ["CAIRN_LIBRARY"]).resolve().parents[1]
SHIM = BUILD / "tests" / "shim" / "libcairn-shim-cudart.so"
GARBAGE = 0xEE
_WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Stream:
    """As torch.cuda.Stream, as far as it is asked for here."""

    def __init__(self, gpu, ordinal, handle):
        self.device, self.gpu, self.cuda_stream = torch.device("cuda", ordinal), gpu, handle


class Gpu:
    """streams: the current ones, by ordinal. after: what is done with memory that torch's allocator has back: None, or a function."""

    def __init__(self):
        self.shim = ctypes.CDLL(str(SHIM))
        self.shim.shim_calls.restype = self.shim.shim_copied_bytes.restype = self.shim.shim_unpinned_copies.restype = ctypes.c_uint64
        self.shim.shim_legacy.restype = ctypes.c_void_p
        for name in ("cudaMalloc", "cudaStreamCreateWithFlags", "cudaStreamSynchronize", "cudaFree", "shim_hold", "shim_release", "cudaStreamBeginCapture"):
            getattr(self.shim, name).argtypes = None
        self.memory = []  # (begin, end, ordinal)
        self.keep = []
        self.streams = {ordinal: self.new_stream(ordinal) for ordinal in range(2)}
        self.let_go = []
        self.reuses = True

    def check(self, code):
        assert code == 0, f"CUDA error {code}"

    def new_stream(self, ordinal=0):
        handle = ctypes.c_void_p()
        self.check(self.shim.cudaSetDevice(ordinal))
        self.check(self.shim.cudaStreamCreateWithFlags(ctypes.byref(handle), 1))
        self.check(self.shim.cudaSetDevice(0))
        return Stream(self, ordinal, handle.value)

    def tensor(self, values, ordinal=0):
        """A copy of a dense tensor in the device's memory."""
        address = ctypes.c_void_p()
        size = max(values.numel() * values.element_size(), 1)
        self.check(self.shim.cudaSetDevice(ordinal))
        self.check(self.shim.cudaMalloc(ctypes.byref(address), ctypes.c_size_t(size)))
        self.check(self.shim.cudaSetDevice(0))
        self.memory.append((address.value, address.value + size, ordinal))
        room = type("Room", (ctypes.c_uint8 * size,), {}).from_address(address.value)
        weakref.finalize(room, self._back, address.value, size).atexit = False
        flat = torch.frombuffer(room, dtype=torch.uint8)[: values.numel() * values.element_size()]
        made = flat.view(values.dtype).view(values.shape)
        made.copy_(values)
        return made

    def _back(self, address, size):
        """The allocator has the memory again, and gives it to whoever puts the next work into the stream."""
        self.let_go.append(address)
        if self.reuses:
            self.kernel(lambda: ctypes.memset(address, GARBAGE, size))

    def kernel(self, run, ordinal=0, stream=None):
        """Work in the order of a stream, by default the current one. Returns an event that is set once it has run."""
        ran = threading.Event()

        def work(_):
            run()
            ran.set()

        self.keep.append(_WORK(work))
        self.shim.shim_work(ctypes.c_void_p((stream or self.streams[ordinal]).cuda_stream), self.keep[-1], None)
        return ran

    def hold(self):
        """Nothing in any stream runs."""
        self.shim.shim_hold(None)

    def release(self, stream=None):
        self.shim.shim_release(ctypes.c_void_p(stream.cuda_stream) if stream else None)

    def slow(self, really=True):
        """Copies take their time from now on, before they begin: other work that is not held back comes first."""
        self.shim.shim_speed(ctypes.c_uint64(4 << 20 if really else 0))

    def drain(self):
        self.shim.shim_drain()

    def copied(self):
        """Bytes that the copy engine has moved."""
        return self.shim.shim_copied_bytes()

    def calls(self, name):
        return self.shim.shim_calls(name.encode())

    def close(self):
        self.reuses = False
        self.slow(False)
        self.release()
        self.drain()

    # What _cuda says of this machine.

    def device_of(self, tensor):
        address = tensor.data_ptr()
        for begin, end, ordinal in self.memory:
            if begin <= address < end:
                return _lib.cuda(ordinal)
        return _lib.HOST

    def stream_of(self, device):
        return self.streams[device - _lib.cuda(0)].cuda_stream

    def is_capturing(self):
        state = ctypes.c_int()
        self.check(self.shim.cudaStreamIsCapturing(ctypes.c_void_p(self.streams[0].cuda_stream), ctypes.byref(state)))
        return state.value != 0

    def synchronize(self, devices):
        for device in devices:
            self.check(self.shim.cudaStreamSynchronize(ctypes.c_void_p(self.stream_of(device))))


@pytest.fixture
def gpu(monkeypatch):
    if not SHIM.exists():
        pytest.skip(f"no {SHIM}: build the target cairn-shim-cudart")
    monkeypatch.setenv("CAIRN_CUDART", str(SHIM))
    made = Gpu()
    for name in ("device_of", "stream_of", "is_capturing", "synchronize"):
        monkeypatch.setattr(_cuda, name, getattr(made, name))
    yield made
    made.close()
    gc.collect()
