# SPDX-License-Identifier: Apache-2.0
"""What programs and libraries need, as readelf tells it."""
import functools
import pathlib
import re
import subprocess

# glibc's own, which must be those of the machine it runs on: they fit its loader and its kernel.
_GLIBC = re.compile(r"^(ld-linux-\S+|libc|libm|libdl|libpthread|librt|libresolv|libutil|libanl|libmvec|libnss_\w+|libnsl)\.so(\.\d+)*$")


def is_glibc(name):
    return bool(_GLIBC.match(name))


def is_elf(path):
    with open(path, "rb") as f:
        return f.read(4) == b"\x7fELF"


def files(tree):
    """All in a tree, links followed by nobody."""
    return [p for p in sorted(pathlib.Path(tree).rglob("*")) if p.is_file() and not p.is_symlink() and is_elf(p)]


@functools.lru_cache(maxsize=None)
def _readelf(path, what):
    return subprocess.run(["readelf", "-W", what, str(path)], capture_output=True, text=True, check=True, timeout=60).stdout


def needed(path):
    return re.findall(r"\(NEEDED\)\s+Shared library: \[(.+?)\]", _readelf(path, "-d"))


def run_path(path):
    """("RPATH" or "RUNPATH", where), or (None, None)."""
    found = re.search(r"\((RPATH|RUNPATH)\)\s+Library r\w*path: \[(.*?)\]", _readelf(path, "-d"))
    return (found.group(1), found.group(2)) if found else (None, None)


def is_program(path):
    return "INTERP" in _readelf(path, "-l")


def glibc(path):
    """The newest version of glibc whose symbols it uses."""
    return max((tuple(map(int, v.split("."))) for v in re.findall(r"\bGLIBC_(\d+\.\d+)", _readelf(path, "-V"))), default=(0, 0))


def search_path():
    """{name: file} of what this machine's loader finds, for this machine's programs."""
    out = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True, timeout=60).stdout
    found = {}
    for name, kind, where in re.findall(r"^\s+(\S+) \((.*?)\) => (\S+)$", out, re.M):
        if "x86-64" in kind or "AArch64" in kind:
            found.setdefault(name, where)
    return found
