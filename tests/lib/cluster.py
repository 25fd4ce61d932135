# SPDX-License-Identifier: Apache-2.0
"""Real daemons as processes, for cluster tests, the demo and benches.

    with Cluster(build, peers=6) as c:
        c.start_all()
        c.run([...])            # a client, to its end, with a deadline
        c.node.kill()           # SIGKILL
        c.node.start()

Everything lives in one temporary directory; processes are ended by their own ids when the with block is left, and die with this
process in any case (PR_SET_PDEATHSIG). Readiness is the daemon's own sd_notify message, never a sleep.
"""
import ctypes
import json
import os
import pathlib
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time

SKIP = 77
_libc = ctypes.CDLL(None)


def _die_with_parent():
    _libc.prctl(1, signal.SIGKILL)


def wait_until(what, condition, seconds=30.0):
    """Polls condition until it holds; the deadline's error says what was waited for."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.02)


# Puts descriptors where a service manager does, from 3 on, and becomes the daemon.
_LISTEN = """import fcntl, os, sys
n = int(sys.argv[1]); fds = [int(a) for a in sys.argv[2:2 + n]]
high = [fcntl.fcntl(f, fcntl.F_DUPFD, 200) for f in fds]
for i, f in enumerate(high):
    os.dup2(f, 3 + i); os.close(f)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2 + n], sys.argv[2 + n:])
"""


class Notify:
    """A test double of the service manager's side of sd_notify: reads every message, and keeps descriptors that come with
    FDSTORE=1 as systemd's store does. It supervises nothing and knows no other message but READY=1."""

    def __init__(self, path, store):
        self.store = store  # name -> descriptor; None: whatever comes is closed
        self.ready = threading.Event()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        if os.path.exists(path):
            os.unlink(path)
        self.socket.bind(path)
        self.socket.settimeout(0.2)
        self.closing = False
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        while True:
            try:
                text, fds, _, _ = socket.recv_fds(self.socket, 4096, 8)
            except socket.timeout:
                if self.closing:
                    return
                continue
            except OSError:
                return
            self._take(dict(line.split("=", 1) for line in text.decode().splitlines() if "=" in line), fds)

    def _take(self, m, fds):
        if "READY" in m:
            self.ready.set()
        name = m.get("FDNAME")
        if "FDSTOREREMOVE" in m and self.store is not None and name in self.store:
            os.close(self.store.pop(name))
        if "FDSTORE" in m and self.store is not None and name not in self.store:
            self.store[name] = fds.pop(0)
        for fd in fds:
            os.close(fd)

    def close(self):
        """After the last message was read."""
        self.closing = True
        self.thread.join()
        self.socket.close()


class Daemon:
    """One cairnd: its configuration, its process, its log. A host (netns.Host) gives it a network namespace: the address to bind to and
    the words before its command."""

    def __init__(self, cluster, name, roles, host=None, **options):
        self.cluster, self.name, self.roles, self.host = cluster, name, roles, host
        self.dir = cluster.dir / name
        self.dir.mkdir()
        self.socket = str(self.dir / "sock")
        self.log = self.dir / "log"
        self.process = None
        self.notify = None
        self.store = None  # {}: descriptors are kept from one start to the next
        self.options = {
            "daemon": {"node": name, "roles": roles, "socket": self.socket, "state": str(self.dir / "state"),
                       "plugins": str(cluster.build / "plugins"), "log": "detail"},
            "meta": {"path": str(cluster.dir / "meta.db"), "lease_ms": 2000},
            "peer": {"reserve_mib": 1},
            "node": {},
            "fabric": {"bind": host.address} if host else {},
            "retention": {},
        }
        for key, value in options.items():
            section, option = key.split("__")
            self.options.setdefault(section, {})[option] = value
        self.write_config()

    def write_config(self):
        lines = []
        for section, options in self.options.items():
            lines.append(f"[{section}]")
            lines += [f"{key} = {value}" for key, value in options.items()]
        self.config = self.dir / "cairnd.conf"
        self.config.write_text("\n".join(lines) + "\n")

    def start(self, wait=True):
        assert self.process is None or self.process.poll() is not None, f"{self.name} runs already"
        if self.notify:
            self.notify.close()
        path = str(self.dir / "notify")
        self.notify = Notify(path, self.store)
        env = dict(os.environ, NOTIFY_SOCKET=path)
        env.pop("WATCHDOG_USEC", None)
        command, fds = [str(self.cluster.build / "daemon" / "cairnd"), "--config", str(self.config)], []
        if self.store:
            names, fds = zip(*self.store.items())
            env.update(LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=":".join(names))
            command = [sys.executable, "-c", _LISTEN, str(len(fds)), *map(str, fds), *command]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([*(self.host.prefix if self.host else []), *command], stdout=log, stderr=log, env=env,
                                            preexec_fn=_die_with_parent, pass_fds=fds)
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self, seconds=30.0):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.notify.ready.wait(0.1):
                return
            if self.process.poll() is not None:
                break
        raise RuntimeError(f"{self.name} did not become ready:\n{self.tail()}")

    def kill(self, sig=signal.SIGKILL, wait=True):
        if self.process and self.process.poll() is None:
            self.process.send_signal(sig)
            if wait:
                self.process.wait(30)

    def stop(self):
        self.kill(signal.SIGTERM)
        return self.process.returncode

    def freeze(self):
        """Stops the process, but not inside a transaction: with the lock of this machine's database it would stop everybody's metadata."""
        for _ in range(100):
            self.process.send_signal(signal.SIGSTOP)
            if self.cluster.database_is_free():
                return
            self.thaw()
            time.sleep(0.002)
        raise TimeoutError(f"{self.name} holds the metadata's lock whenever it is stopped")

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def tail(self, lines=80):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else "(no log)"

    def stream_files(self):
        return sorted((self.dir / "state" / "peer" / "streams").glob("*/*.cairn"))


class Cluster:
    """Peers p1.. and nodes n1..; `common` are options of all of them, `hosts` makes the host of a name."""

    def __init__(self, build, peers=6, keep=False, both_roles=False, directory=None, nodes=1, common=None, hosts=None, **node_options):
        self.build = pathlib.Path(build).resolve()
        self.keep = keep
        self.dir = pathlib.Path(directory or tempfile.mkdtemp(prefix="cairn-"))
        self.dir.mkdir(exist_ok=True)
        self.children = []
        node_options.setdefault("node__fragment_late_ms", 1000)
        node_options.setdefault("node__connect_ms", 1000)
        node_options.setdefault("node__checkpoint_s", 60)
        common, hosts = common or {}, hosts or (lambda name: None)
        self.peers = [Daemon(self, f"p{i}", "peer", hosts(f"p{i}"), **common) for i in range(1, peers + 1)]
        self.nodes = [Daemon(self, f"n{i}", "node,peer" if both_roles else "node", hosts(f"n{i}"), **{**common, **node_options})
                      for i in range(1, nodes + 1)]
        self.node = self.nodes[0]

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if kind and not issubclass(kind, SystemExit):
            for d in [*self.nodes, *self.peers]:
                print(f"--- {d.name}\n{d.tail()}", file=sys.stderr)
        self.close()

    def end_all(self):
        for child in self.children:
            if child.poll() is None:
                child.kill()
                child.wait()
        for d in [*self.nodes, *self.peers]:
            if d.process and d.process.poll() is None:
                d.process.send_signal(signal.SIGCONT)
                d.process.kill()
                d.process.wait()

    def close(self):
        self.end_all()
        for d in [*self.nodes, *self.peers]:
            if d.notify:
                d.notify.close()
            for fd in (d.store or {}).values():
                os.close(fd)
        if not self.keep:
            shutil.rmtree(self.dir, ignore_errors=True)

    def start_all(self):
        for p in self.peers:
            p.start(wait=False)
        for p in self.peers:
            p.wait_ready()
        for n in self.nodes:
            n.start()
        self.wait_peers_up()
        return self

    def wait_peers_up(self, count=None):
        want = len([p for p in self.peers if p.alive()]) if count is None else count
        wait_until(f"{want} peers up", lambda: self.peers_up() >= want)

    def database_is_free(self):
        path = self.dir / "meta.db"
        if not path.exists():
            return True
        db = sqlite3.connect(path, timeout=0.1, isolation_level=None)
        try:
            db.execute("BEGIN IMMEDIATE")
            db.execute("ROLLBACK")
            return True
        except sqlite3.OperationalError:
            return False
        finally:
            db.close()

    def peers_up(self):
        status = self.query("status")
        return sum(p["state"] == "up" for p in status.get("peers", [])) if status else 0

    def wait_complete(self, seconds=30.0):
        """Until what was late at the commits is stored too, or left to repair."""
        wait_until("saves to complete behind their commits",
                   lambda: (s := self.query("status")) and not any(j["checkpoints_open"] for j in s["jobs"]), seconds)

    def query(self, *args, seconds=60.0, node=None):
        """A query's JSON through libcairn; None when it failed."""
        code, out, _ = self.client(*args, check=False, seconds=seconds, node=node)
        return json.loads(out) if code == 0 else None

    def spawn(self, args, node=None, **kwargs):
        """Starts a client; its socket comes from CAIRN_SOCKET: the given node's, or the first one's."""
        env = dict(os.environ, CAIRN_SOCKET=(node or self.node).socket)
        child = subprocess.Popen([str(a) for a in args], env=env, preexec_fn=_die_with_parent, text=True,
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs)
        self.children.append(child)
        return child

    def run(self, args, seconds=60.0, check=True, node=None):
        """Runs a client to its end. Returns (exit code, stdout, stderr)."""
        child = self.spawn(args, node)
        try:
            out, err = child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            raise TimeoutError(f"{args} did not end within {seconds} s") from None
        if check and child.returncode != 0:
            raise RuntimeError(f"{[str(a) for a in args]} ended with {child.returncode}:\n{out}{err}")
        return child.returncode, out, err

    def client(self, *args, **kwargs):
        return self.run([self.build / "tests" / "cluster" / "cluster-client", *args], **kwargs)

    def tool(self, *args, check=True, seconds=60.0):
        """The tool's JSON; None when it failed and check is off."""
        code, out, err = self.run([self.build / "client" / "tool" / "cairn", "--json", *args], check=False, seconds=seconds)
        if code != 0 and check:
            raise RuntimeError(f"cairn {args} ended with {code}: {out}{err}")
        return json.loads(out) if code == 0 and out else None
