# SPDX-License-Identifier: Apache-2.0
"""Where Cairn's programs are, in an unpacked bundle or in a build tree, and a daemon of one's own from there."""
import ctypes
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time

_libc = ctypes.CDLL(None)


def die_with_parent():
    _libc.prctl(1, signal.SIGKILL)


class Place:
    """A bundle (the directory that scripts/bundle packs), or the source tree with a build directory."""

    def __init__(self, root, build=None):
        root = pathlib.Path(root).resolve()
        self.bundle = build is None
        if self.bundle:
            self.cairnd, self.tool, self.library = root / "bin" / "cairnd", root / "bin" / "cairn", root / "lib" / "libcairn.so.0"
            self.plugins, self.python, self.copy = root / "lib" / "cairn", root / "python", root / "bench" / "bench-gpu-copy"
            self.kernels = root / "bench" / "bench-gpu-kernels"
            self.conformance = root / "tests" / "conformance_device"
        else:
            build = pathlib.Path(build).resolve()
            self.cairnd, self.tool = build / "daemon" / "cairnd", build / "client" / "tool" / "cairn"
            self.library, self.plugins = build / "client" / "libcairn.so.0", build / "plugins"
            self.python, self.copy = root / "client" / "python" / "src", build / "bench" / "bench-gpu-copy"
            self.kernels = build / "bench" / "bench-gpu-kernels"
            self.conformance = build / "tests" / "conformance" / "conformance_device"
        missing = [str(p) for p in (self.cairnd, self.library, self.plugins, self.python / "cairn", self.copy, self.kernels) if not p.exists()]
        if missing:
            raise FileNotFoundError(f"{'the bundle' if self.bundle else 'the build'} lacks {', '.join(missing)}: give an unpacked bundle with "
                                    f"--bundle, or a complete build with --build")

    @property
    def device_plugin(self):
        return self.plugins / "cairn-device-cuda.so"

    def environment(self, **more):
        """Of programs that use libcairn. A bundle finds what belongs to it by itself: it is what is measured."""
        env = {k: v for k, v in os.environ.items() if k not in ("CAIRN_SOCKET", "CAIRN_LIBRARY", "CAIRN_PLUGIN_PATH")}
        path = [str(self.python), env.get("PYTHONPATH", "")]
        env.update(PYTHONPATH=os.pathsep.join(p for p in path if p), PYTHONDONTWRITEBYTECODE="1")
        if not self.bundle:
            env.update(CAIRN_LIBRARY=str(self.library), CAIRN_PLUGIN_PATH=str(self.plugins))
        return {**env, **more}


class Daemon:
    """One cairnd with both roles. Its directory is emptied at each fresh start: what an earlier family saved is gone."""

    def __init__(self, place, directory, arena_bytes):
        self.place, self.directory, self.process = place, pathlib.Path(directory), None
        self.arena_bytes = arena_bytes
        self.socket = str(self.directory / "sock")
        self.log = self.directory / "log"

    def _configure(self):
        options = {
            "daemon": {"node": "bench", "socket": self.socket, "state": self.directory / "state", "plugins": self.place.plugins},
            "peer": {"reserve_mib": 64, "scrub_mib_s": 0},
            "node": {"arena_max_mib": self.arena_bytes >> 20, "checkpoint_s": 600, "repair_every_s": 0},
            "retention": {"rule": "last=1", "interval_s": 1},
        }
        text = "".join(f"[{section}]\n" + "".join(f"{k} = {v}\n" for k, v in keys.items()) for section, keys in options.items())
        path = self.directory / "cairnd.conf"
        path.write_text(text)
        return path

    def start(self, fresh=True):
        """Not fresh: what is on its disk stays, what was in its memory is gone."""
        self.stop(gently=not fresh)
        if fresh:
            shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True, exist_ok=True)
        where = str(self.directory / "notify")
        if os.path.exists(where):
            os.unlink(where)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, open(self.log, "ab") as log:
            notify.bind(where)
            notify.settimeout(0.1)
            self.process = subprocess.Popen([self.place.cairnd, "--config", self._configure()], stdout=log, stderr=log, preexec_fn=die_with_parent,
                                            env={**os.environ, "NOTIFY_SOCKET": where})
            self._wait_ready(notify, time.monotonic() + (30 if fresh else 60))

    def _wait_ready(self, notify, end):
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if "READY=1" in notify.recv(4096).decode(errors="replace"):
                    return
            except socket.timeout:
                continue
        raise RuntimeError(f"cairnd did not become ready: {self.tail()}")

    def tail(self):
        return self.log.read_text(errors="replace")[-1500:] if self.log.exists() else "(no log)"

    def stop(self, gently=False):
        """At once, when what is under way is of no use to anybody."""
        if gently and self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                pass
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait(60)
        self.process = None
