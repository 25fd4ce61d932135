# SPDX-License-Identifier: Apache-2.0
"""What the figures were measured on."""
import os
import pathlib
import platform
import re
import shutil
import subprocess


def _first(path, pattern, default="unknown"):
    try:
        found = re.search(pattern, pathlib.Path(path).read_text(), re.M)
    except OSError:
        return default
    return found.group(1).strip() if found else default


def commit(root):
    def git(*args):
        try:
            return subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True).stdout.strip()
        except OSError:  # there is no git
            return ""

    built = pathlib.Path(root) / "COMMIT"  # of a bundle
    if built.exists():
        return built.read_text().strip()

    head = git("rev-parse", "--short=12", "HEAD") or "unknown"
    return head + (" with changes" if git("status", "--porcelain", "--untracked-files=no") else "")


def _filesystem(directory):
    best = ("", "unknown", "")
    for line in pathlib.Path("/proc/mounts").read_text().splitlines():
        device, where, kind = line.split()[:3]
        if pathlib.Path(directory).resolve().is_relative_to(where) and len(where) >= len(best[0]):
            best = (where, kind, device)
    return best[1]


def describe(root, directory):
    flags = _first("/proc/cpuinfo", r"^flags\s*:(.*)$", "").split()
    return {
        "commit": commit(root), "processor": _first("/proc/cpuinfo", r"^model name\s*:(.*)$"), "processors": len(os.sched_getaffinity(0)),
        "vectors": [f for f in ("avx2", "avx512f", "avx512_vbmi2") if f in flags],
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "huge_pages": _first("/sys/kernel/mm/transparent_hugepage/enabled", r"\[(\w+)\]"),
        "huge_pages_shared": _first("/sys/kernel/mm/transparent_hugepage/shmem_enabled", r"\[(\w+)\]"),
        "kernel": platform.release(), "filesystem": _filesystem(directory), "python": platform.python_version(),
        "fio": shutil.which("fio") is not None, "load_before": os.getloadavg()[0],
    }


def text(m):
    return (f"{m['processors']} processors ({m['processor']}; {' '.join(m['vectors']) or 'no AVX2'}), {m['memory_gib']} GiB, "
            f"Linux {m['kernel']}, {m['filesystem']}, commit {m['commit']}, load {m['load_before']:.1f} before" + (f"; {m['gpu']}" if m.get("gpu") else ""))
