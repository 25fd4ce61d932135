# SPDX-License-Identifier: Apache-2.0
"""Hosts on one machine: network namespaces around a switch, whose cables can be pulled, cut in one direction and made slow.

    netns.enter()                      # first of all, before threads: this process gets namespaces of its own
    net = netns.Net()
    a, b = net.host("a"), net.host("b")
    subprocess.Popen([*a.prefix, "cairnd", ...])    # a process on host a, bound to a.address
    b.unplug(); b.plug()
    a.cut(b); a.mend()                 # a's packets to b are lost, b's to a are not
    b.shape(mbit=2); b.unshape()

Nothing outside changes and nothing has to be removed: the namespaces have no names. They exist while this process holds their
descriptors or a process lives in them; those die with this process (PR_SET_PDEATHSIG). However a test ends, SIGKILL included, the kernel
takes namespaces, cables, the switch and what enter()'s mount namespace holds.

What a machine may lack: enter() raises NotPermitted without root and without unprivileged user namespaces; net.missing names the kinds
of tc that the kernel has not (shape() without a delay needs tbf, with one netem).
"""
import ctypes
import os
import pathlib
import shutil
import subprocess

_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
NETWORK = "10.77.0"
BLACK_HOLE = "02:00:00:00:00:01"  # nobody's address


class NotPermitted(Exception):
    """This machine allows no namespaces; says why."""


class Missing(Exception):
    """The kernel lacks what a fault needs; says what."""


def _call(what, *args):
    if getattr(_libc, what)(*args) != 0:
        raise NotPermitted(f"{what}: {os.strerror(ctypes.get_errno())}")


def command(args, **kwargs):
    """Runs a short command; its error is the exception's text."""
    r = subprocess.run([str(a) for a in args], capture_output=True, text=True, timeout=30, **kwargs)
    if r.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, args))}: {r.stderr.strip() or r.returncode}")
    return r.stdout


def enter():
    """Moves this process into a mount and a network namespace of its own; without root, into a user namespace whose root it is."""
    for tool in ("ip", "tc", "nsenter", "mount"):
        if not shutil.which(tool):
            raise NotPermitted(f"there is no {tool} (packages iproute2, util-linux)")
    uid, gid = os.geteuid(), os.getegid()
    _call("unshare", _CLONE_NEWNS | _CLONE_NEWNET | (_CLONE_NEWUSER if uid else 0))
    if uid:
        pathlib.Path("/proc/self/setgroups").write_text("deny")
        pathlib.Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        pathlib.Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    try:
        command(["mount", "--make-rprivate", "/"])  # what is mounted from here on is nobody else's
    except RuntimeError as e:
        raise NotPermitted(str(e)) from e


def _ip(lines, prefix=()):
    command([*prefix, "ip", "-batch", "-"], input="\n".join(lines) + "\n")


class Host:
    """One namespace with one cable, eth0, to the switch; `port` is the cable's other end."""

    def __init__(self, net, name, number):
        self.net, self.name, self.address, self.port = net, name, f"{NETWORK}.{number}", f"port{number}"
        _call("unshare", _CLONE_NEWNET)
        self.fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        _call("setns", net.fd, _CLONE_NEWNET)
        path = f"/proc/{os.getpid()}/fd/{self.fd}"
        self.prefix = ["nsenter", f"--net={path}", "--"]
        self.up, self.shaped, self.lost = True, False, set()
        try:
            _ip([f"link add {self.port} type veth peer name eth0 netns {path}", f"link set {self.port} master switch up"])
            _ip(["link set lo up", f"addr add {self.address}/24 dev eth0", "link set eth0 up"], self.prefix)
        except RuntimeError as e:
            raise NotPermitted(str(e)) from e

    def unplug(self):
        """Nothing goes in or out; the processes see a cable without carrier."""
        _ip([f"link set {self.port} down"])
        self.up = False

    def plug(self):
        _ip([f"link set {self.port} up"])
        self.up = True

    def cut(self, *others):
        """What this host sends to the others is lost without a trace; what they send arrives. They are Hosts; none: everyone."""
        for other in others or [h for h in self.net.hosts if h is not self]:
            _ip([f"neigh replace {other.address} lladdr {BLACK_HOLE} dev eth0 nud permanent"], self.prefix)
            self.lost.add(other.address)

    def mend(self):
        for address in self.lost:
            _ip([f"neigh del {address} dev eth0"], self.prefix)
        self.lost.clear()

    def shape(self, mbit, delay_ms=0):
        """A slow cable, both ways: at most mbit/s, and delay_ms each way."""
        needed = "netem" if delay_ms else "tbf"
        if needed in self.net.missing:
            raise Missing(f"the kernel has no {needed} (CONFIG_NET_SCH_{needed.upper()})")
        kind = ["netem", "delay", f"{delay_ms}ms", "rate", f"{mbit}mbit"] if delay_ms else [
            "tbf", "rate", f"{mbit}mbit", "burst", "64kb", "latency", "200ms"]
        command(["tc", "qdisc", "replace", "dev", self.port, "root", *kind])
        command([*self.prefix, "tc", "qdisc", "replace", "dev", "eth0", "root", *kind])
        self.shaped = True

    def unshape(self):
        if self.shaped:
            command(["tc", "qdisc", "del", "dev", self.port, "root"])
            command([*self.prefix, "tc", "qdisc", "del", "dev", "eth0", "root"])
        self.shaped = False

    def heal(self):
        """Undoes whatever was done to the cable."""
        self.plug()
        self.mend()
        self.unshape()


class Net:
    """The switch, in the namespace of enter(); it has an address there, so that this process reaches the hosts."""

    def __init__(self):
        self.fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.hosts = []
        try:
            _ip(["link set lo up", "link add switch type bridge stp_state 0", f"addr add {NETWORK}.1/24 dev switch",
                 "link set switch up"])
        except RuntimeError as e:
            raise NotPermitted(str(e)) from e
        self.missing = self._missing()

    def _missing(self):
        """Kinds of tc that the kernel has not, tried on a cable that is thrown away."""
        _ip(["link add try0 type veth peer name try1"])
        missing = set()
        for kind, args in {"tbf": "rate 1mbit burst 64kb latency 50ms", "netem": "delay 1ms"}.items():
            if subprocess.run(["tc", "qdisc", "replace", "dev", "try0", "root", kind, *args.split()], capture_output=True,
                              timeout=30).returncode != 0:
                missing.add(kind)
        _ip(["link del try0"])
        return missing

    def host(self, name):
        assert len(self.hosts) < 240, "a /24 is full"
        self.hosts.append(Host(self, name, 10 + len(self.hosts)))
        return self.hosts[-1]


class Disk:
    """A small file system of its own for one directory, so that it can be full. A tmpfs where it takes O_DIRECT (Linux 6.6), else a file
    with ext4 on a loop device, which needs root. Mounted in the namespace of enter(): it goes with this process."""

    def __init__(self, path, mib):
        self.path = pathlib.Path(path)
        self.filler = self.path / "filler"
        self.path.mkdir(parents=True, exist_ok=True)
        command(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "cairn-test", self.path])
        if self._takes_direct():
            return
        command(["umount", self.path])
        image = self.path.with_name(self.path.name + ".img")
        with open(image, "wb") as f:
            f.truncate(mib << 20)
        try:
            command(["mkfs.ext4", "-q", "-F", "-m", "0", image])
            command(["mount", "-o", "loop", image, self.path])
        except (RuntimeError, FileNotFoundError) as e:
            raise Missing(f"tmpfs takes no O_DIRECT here, and no ext4 on a loop device: {e}") from e

    def _takes_direct(self):
        probe = self.path / "probe"
        try:
            os.close(os.open(probe, os.O_CREAT | os.O_RDWR | os.O_DIRECT, 0o600))
            return True
        except OSError:
            return False
        finally:
            probe.unlink(missing_ok=True)

    def unmount(self):
        """Before its directory is removed; nothing of it may be open."""
        subprocess.run(["umount", str(self.path)], capture_output=True, timeout=30)

    def free_bytes(self):
        s = os.statvfs(self.path)
        return s.f_bavail * s.f_frsize

    def fill(self, leave_bytes=0):
        """Takes the space that is left, all but leave_bytes."""
        fd = os.open(self.filler, os.O_CREAT | os.O_WRONLY, 0o600)
        size = os.fstat(fd).st_size
        try:
            while (room := self.free_bytes() - leave_bytes) > 0:
                try:
                    os.posix_fallocate(fd, size, room)
                    size += room
                except OSError:  # others write too: once more, smaller
                    if room < 1 << 16:
                        break
                    os.posix_fallocate(fd, size, room // 2)
                    size += room // 2
        except OSError:
            pass  # then it is full
        finally:
            os.close(fd)

    def clear(self):
        self.filler.unlink(missing_ok=True)
