# SPDX-License-Identifier: Apache-2.0
"""The licences of libraries that come from Debian's packages."""
import pathlib
import shutil
import subprocess

DOCUMENTS = pathlib.Path("/usr/share/doc")
COMMON = pathlib.Path("/usr/share/common-licenses")  # what copyright files refer to


class Missing(Exception):
    """Nothing is handed on whose licence is not known."""


def _owner(path):
    """The package of a file, which dpkg may know by its place before /lib and /usr/lib were one."""
    real = str(path.resolve())
    for name in dict.fromkeys([real, str(path), real.removeprefix("/usr"), "/usr" + real.removeprefix("/usr")]):
        done = subprocess.run(["dpkg-query", "-S", name], capture_output=True, text=True, timeout=60)
        if done.returncode == 0:
            return done.stdout.split(":")[0]
    raise Missing(f"{path} belongs to no package of this machine: its licence is not known, and it cannot be handed on")


def _version(package):
    done = subprocess.run(["dpkg-query", "-W", "-f", "${source:Package} ${source:Version}\n", package], capture_output=True, text=True, timeout=60)
    return done.stdout.splitlines()[0] if done.stdout else "unknown"


def _copyright(package, source):
    """Where several packages share one, dpkg may have left out the links to it."""
    names = [package, source, f"{source}-base"]
    return next((p for p in (DOCUMENTS / name / "copyright" for name in names) if p.exists()), None)


def collect(sources, to):
    """sources: {library's name: its file}. Writes PACKAGE.copyright files and an index with where the sources are from."""
    to.mkdir()
    if not COMMON.is_dir():
        raise Missing(f"{COMMON} is missing, to which copyright files refer: install the package base-files")
    shutil.copytree(COMMON, to / "common")
    lines = ["Libraries in lib/ that are not Cairn's, as Debian ships them, without debug information: library, package, source package and its version.",
             "Where a copyright file names /usr/share/common-licenses, see common/.", "Their sources: https://snapshot.debian.org/package/SOURCE/VERSION/", ""]
    for name, path in sorted(sources.items()):
        package = _owner(path)
        version = _version(package)
        copyright_ = _copyright(package, version.split()[0])
        if not copyright_:
            raise Missing(f"{name}: package {package} has no copyright file in {DOCUMENTS}: its licence cannot be handed on with it")
        shutil.copy(copyright_.resolve(), to / f"{package}.copyright")
        lines.append(f"{name:<28} {package:<24} {version:<40} {package}.copyright")
    (to / "INDEX").write_text("\n".join(lines) + "\n")
