# SPDX-License-Identifier: Apache-2.0
"""The bundle (scripts/bundle) where there is nothing but glibc: a root directory with its files, the unpacked bundle, /proc and two devices.

A daemon with both roles, a training program that is saved and goes on from what was saved to the same bits, the tool, every plugin with all that it
needs; then Python from outside of that root. The mounts are in a mount namespace of the process that needs them and end with it; what lies in the
directory is removed by one that never saw them."""
import argparse
import importlib.machinery
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "lib"))
sys.path.insert(0, str(ROOT / "scripts" / "lib"))
import elf  # noqa: E402
from cluster import SKIP, Notify, _die_with_parent, wait_until  # noqa: E402

TREE = "/far/away"  # where the bundle lies in the new root


def bundle_script():
    loader = importlib.machinery.SourceFileLoader("bundle", str(ROOT / "scripts" / "bundle"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("bundle", loader))
    loader.exec_module(module)
    return module



# ---- outside: makes the directory, and removes it ----

def glibc_files():
    """Of this machine: the loader, and the libraries that are found beside libc."""
    where = pathlib.Path(elf.search_path()["libc.so.6"])
    return [p for p in where.parent.iterdir() if elf.is_glibc(p.name)], where.parent


def make_root(root, archive):
    libraries, where = glibc_files()
    to = root / where.relative_to("/")
    to.mkdir(parents=True)
    for path in libraries:
        shutil.copy(path.resolve(), to / path.name)
    loader = next(p for p in to.iterdir() if p.name.startswith("ld-linux"))
    (root / "lib64").mkdir(exist_ok=True)
    shutil.copy(loader, root / "lib64" / loader.name)
    for name in ("proc", "dev", "tmp", "run", "var", "far"):
        (root / name).mkdir()
    for name in ("null", "urandom"):
        (root / "dev" / name).touch()
    with tarfile.open(archive) as packed:
        packed.extractall(root / "far")
    (unpacked,) = (root / "far").iterdir()
    unpacked.rename(root / TREE.lstrip("/"))


def refused(script, tree):
    """A file that needs what is not there makes no bundle, nor one that would look elsewhere."""
    for name, what, options in (("lacks", "needs libabsent.so.9", ["-Wl,--no-as-needed", "-L.", "-labsent"]),
                                ("strays", "looks for libraries in", ["-Wl,-rpath,/somewhere"])):
        with tempfile.TemporaryDirectory() as d:
            subprocess.run(["gcc", "-shared", "-xc", "/dev/null", "-o", "libabsent.so", "-Wl,-soname,libabsent.so.9"], cwd=d, check=True, timeout=30)
            odd = tree / "lib" / "cairn" / f"cairn-{name}.so"
            subprocess.run(["gcc", "-shared", "-xc", "/dev/null", "-o", odd, "-xnone", *options], cwd=d, check=True, timeout=30)
            try:
                script.copy_libraries(tree)
                script.check(tree)
            except script.Refused as e:
                assert what in str(e) and odd.name in str(e), e
            else:
                raise AssertionError(f"a file that {what} was taken into the bundle")
            finally:
                odd.unlink()


def outside(a):
    script = bundle_script()
    with tempfile.TemporaryDirectory(prefix="cairn-bundle-test-") as scratch:
        scratch = pathlib.Path(scratch)
        archive, root = scratch / "bundle.tar.gz", scratch / "root"
        script_run = subprocess.run([sys.executable, ROOT / "scripts" / "bundle", "--build", a.build, "-o", archive], capture_output=True, text=True,
                                    timeout=120)
        assert script_run.returncode == 0, script_run.stderr
        print(script_run.stdout.strip())
        make_root(root, archive)
        unshare = ["unshare", "--mount", "--propagation", "private", *(["--map-root-user"] if os.geteuid() else [])]
        possible = subprocess.run([*unshare, "true"], capture_output=True, text=True, timeout=30)
        if possible.returncode != 0:
            print(f"skipped: no mount namespace on this machine: {possible.stderr.strip()}")
            return SKIP
        inside = subprocess.run([*unshare, sys.executable, __file__, "--inside", root, "--build", a.build], timeout=100, preexec_fn=_die_with_parent)
        if inside.returncode == 0:
            refused(script, root / TREE.lstrip("/"))
        return inside.returncode


# ---- inside a mount namespace of its own ----

class Cell:
    """The new root, and how programs are run in it."""

    def __init__(self, root):
        self.root = root
        for source, to in (("/proc", "proc"), ("/dev/null", "dev/null"), ("/dev/urandom", "dev/urandom")):
            subprocess.run(["mount", "--rbind", source, root / to], check=True, timeout=30)

    def enter(self):
        _die_with_parent()
        os.chroot(self.root)
        os.chdir("/")

    def popen(self, *args, env=None, **kwargs):
        return subprocess.Popen([str(x) for x in args], preexec_fn=self.enter, env={"PATH": "/nowhere", **(env or {})}, **kwargs)

    def run(self, *args, env=None, seconds=60):
        child = self.popen(*args, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            out, err = child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            raise
        assert child.returncode == 0, f"{args} ended with {child.returncode}: {out}{err}"
        return out, err


def every_plugin_loads(cell):
    """With all that it and its libraries need, as cairnd loads it."""
    for plugin in sorted((cell.root / TREE.lstrip("/") / "lib" / "cairn").glob("*.so")):
        out, err = cell.run(f"{TREE}/bin/cairnd", "--version", env={"LD_PRELOAD": f"{TREE}/lib/cairn/{plugin.name}", "LD_BIND_NOW": "1"})
        assert out.startswith("cairnd ") and not err, f"{plugin.name}: {err}"


def trains_and_goes_on(cell, env):
    """The second start has nothing to train: what it has at the end is what it restored."""
    sums = []
    for start in ("a", "b"):
        cell.run(f"{TREE}/examples/train", "--job", "t", "--ranks", "2", "--steps", "4", "--save-every", "2", "--on-busy", "wait", "--start-id", start,
                 "--text", f"{TREE}/licences/common", "--checksum", f"/tmp/sum.{start}", env=env)
        sums.append((cell.root / "tmp" / f"sum.{start}").read_text())
        out, _ = cell.run(f"{TREE}/bin/cairn", "--json", "ls", "t", env=env)
        steps = [k["step"] for k in json.loads(out)["checkpoints"] if k["state"] == "committed"]
        assert 4 in steps, out
    assert sums[0] == sums[1], sums
    cell.run(f"{TREE}/bin/cairn", "restore", "t", "4", "--to", "/tmp/files", env=env)
    assert list((cell.root / "tmp" / "files").rglob("*.safetensors"))


FOREIGN = """
import os, sys, cairn
from cairn import _lib
tree = os.path.realpath(sys.argv[1])
state = {"bytes": b"state of a process that brings its own libraries", "step": 3}
with cairn.Checkpointer("python", socket=sys.argv[2]) as c:
    c.save(3, state, wait="committed")
with cairn.Checkpointer("python", socket=sys.argv[2]) as c:
    got = {"bytes": None, "step": None}
    assert c.load(got) == 3 and got == state, got
with cairn.Session("device", arena_bytes=4 << 20, socket=sys.argv[2]) as s:
    s.use_device(cairn.cuda(0))
    plugins = {line.split()[-1] for line in open("/proc/self/maps") if "cairn-device" in line}
assert plugins == {tree + "/lib/cairn/cairn-device-cuda.so"}, plugins
libraries = {line.split()[-1] for line in open("/proc/self/maps") if "libcairn.so" in line}
assert libraries == {tree + "/lib/libcairn.so.0"}, libraries
"""


def measures(cell, build):
    """bench/gpu finds all of it in the bundle; without torch it measures the plugin."""
    tree, report = cell.root / TREE.lstrip("/"), cell.root / "tmp" / "gpu.json"
    done = subprocess.run([sys.executable, tree / "bench" / "gpu", "--cpu", "--only", "plugin", "--directory", cell.root / "tmp", "--json", report],
                          capture_output=True, text=True, timeout=60, env={**os.environ, "CAIRN_CUDART": shim(build), "PYTHONDONTWRITEBYTECODE": "1"})
    assert done.returncode == 0, f"{done.returncode}: {done.stdout}{done.stderr}"
    assert "plugin_copy_over_limit" in {r["name"] for r in json.loads(report.read_text())["rows"] if r["median"]}, done.stdout


def shim(build):
    """The double of the CUDA runtime, which is no part of the bundle."""
    return str(build.resolve() / "tests" / "shim" / "libcairn-shim-cudart.so")


def from_outside(cell, socket, build):
    """A process that brings its own libraries, and a device."""
    tree = cell.root / TREE.lstrip("/")
    env = {k: v for k, v in os.environ.items() if not k.startswith("CAIRN_")}
    done = subprocess.run([sys.executable, "-c", FOREIGN, tree, cell.root / socket.lstrip("/")], capture_output=True, text=True, timeout=60,
                          env={**env, "PYTHONPATH": str(tree / "python"), "PYTHONDONTWRITEBYTECODE": "1",
                               "CAIRN_CUDART": shim(build)})
    assert done.returncode == 0, f"{done.returncode}: {done.stdout}{done.stderr}"
    merged = cell.root / "tmp" / "merged"  # the tool finds the package beside it
    for command in (["restore", "t", "4", "--merge", "--to", merged], ["import", merged / "model.safetensors", "taken"]):
        done = subprocess.run([tree / "bin" / "cairn", *command, "--socket", cell.root / socket.lstrip("/")], capture_output=True, text=True, timeout=60,
                              env={**env, "CAIRN_PYTHON": sys.executable, "PYTHONPATH": "/nowhere", "PYTHONDONTWRITEBYTECODE": "1"})
        assert done.returncode == 0, f"{done.returncode}: {done.stdout}{done.stderr}"


def inside(root, build):
    cell = Cell(root)
    every_plugin_loads(cell)
    socket = "/run/sock"
    (root / "tmp" / "cairnd.conf").write_text(f"[daemon]\nsocket = {socket}\nstate = /var/state\n[peer]\nreserve_mib = 1\n")
    notify = Notify(str(root / "run" / "notify"), None)
    log = root / "tmp" / "log"
    with open(log, "wb") as out:
        daemon = cell.popen(f"{TREE}/bin/cairnd", "--config", "/tmp/cairnd.conf", env={"NOTIFY_SOCKET": "/run/notify"}, stdout=out, stderr=out)
    try:
        wait_until("the daemon to be ready", lambda: notify.ready.is_set() or daemon.poll() is not None, 20)
        assert daemon.poll() is None, "it ended"
        env = {"CAIRN_SOCKET": socket}
        out, _ = cell.run(f"{TREE}/bin/cairn", "status", env=env)
        assert "node" in out, out
        trains_and_goes_on(cell, env)
        from_outside(cell, socket, build)
        measures(cell, build)
        daemon.terminate()
        assert daemon.wait(20) == 0
    except BaseException:
        print(log.read_text(errors="replace")[-4000:], file=sys.stderr)
        raise
    finally:
        if daemon.poll() is None:
            daemon.kill()
            daemon.wait()
        notify.close()
    return 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=pathlib.Path)
    parser.add_argument("--inside", type=pathlib.Path)
    a = parser.parse_args()
    sys.exit(inside(a.inside, a.build) if a.inside else outside(a))


main()
