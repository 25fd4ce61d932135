#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Fails when a floor looks up: an include that docs/architecture.md forbids, or a call that belongs to one file only.

    check_floors.py ROOT         checks a tree
    check_floors.py --self-test  plants one violation of each rule in a small tree and expects to be told of it
"""
import ast
import pathlib
import re
import sys
import tempfile

PURE = ["sys/socket.h", "sys/mman.h", "sys/stat.h", "pthread.h", "liburing.h", "rdma/", "sqlite3.h", "curl/", "time.h", "fcntl.h", "poll.h",
        "dlfcn.h", "signal.h", "threads.h", "sys/time.h", "sys/un.h", "netinet/", "arpa/", "sys/epoll.h"]
# floor (a path prefix) -> prefixes of our own includes it may use
MAY = {
    "include/": ["cairn/"],
    "core/base/": ["cairn/", "core/base/"],
    "core/model/": ["cairn/", "core/base/", "core/model/"],
    "core/proto/": ["cairn/", "core/base/", "core/model/", "core/proto/"],
    "core/checkpoint/": ["cairn/", "core/"],
    "plugins/": ["cairn/", "core/base/", "plugins/"],
    "client/tool/": ["cairn/", "core/base/", "core/model/", "client/"],
    "client/examples/": ["cairn/", "client/examples/"],
    "client/": ["cairn/", "core/base/", "core/model/", "core/proto/local.h", "client/"],
    "daemon/io/": ["cairn/", "core/", "daemon/io/"],
    "daemon/peer/": ["cairn/", "core/", "daemon/io/", "daemon/peer/"],
    "daemon/node/": ["cairn/", "core/", "daemon/io/", "daemon/node/"],
    "daemon/": ["cairn/", "core/", "daemon/"],
}
# a system include -> the only files that may have it
ONLY = {
    "liburing.h": r"daemon/io/loop\w*\.[ch]",
    "rdma/": r"daemon/io/(fabric|endpoint)\w*\.[ch]",
    "sqlite3.h": r"plugins/meta-sqlite/.*",
    "dlfcn.h": r"(daemon/io/plugins|client/device_plugin|plugins/device-cuda/runtime)\.c",
    "isa-l": r"daemon/node/(encode|decode|parity)\.c",
    "openssl/": r"(daemon/node/blob|daemon/io/keyring|plugins/meta-etcd/(answer|body))\.c",
    "systemd/": r"daemon/(main|fdstore)\.c",
    "ini.h": r"daemon/config\.c",
    "lz4.h": r"plugins/codec-lz4/.*",
}
# who may name a plugin's table of functions
OPS = re.compile(r"struct cairn_(codec|store|meta|device)_ops")
OPS_FILES = re.compile(r"(include/cairn/plugin\.h|plugins/.*|daemon/io/(door_\w+|plugins)\.[ch]|client/device(_plugin)?\.[ch]|tests/.*)")
INCLUDE = re.compile(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', re.M)
OWN = re.compile(r"^(cairn|core|plugins|client|daemon)/")

# The Python package: floor (a module, or a package with a slash) -> floors it may use, besides itself
PYTHON = "client/python/src/cairn/"
BINDING = ["errors", "_lib", "table", "session", "launch"]
STATE = ["_tree", "_numpy", "_torch", "_cuda", "_live", "_layout", "_promise", "_merge", "_load", "_devices"]
PYTHON_MAY = {
    **{m: BINDING for m in BINDING},
    **{m: BINDING + STATE for m in STATE},
    "checkpointer": BINDING + STATE,
    "__init__": BINDING + STATE + ["checkpointer"],
    "torch/": BINDING + STATE,
    "convert/": BINDING + STATE,
    "integrations/": BINDING + STATE + ["checkpointer"],
}
# what is not everybody's to have -> the floors that may import it
PYTHON_ONLY = {"torch": ["_torch", "_cuda", "_live", "torch/", "convert/", "integrations/"], "numpy": ["_numpy", "torch/", "convert/", "integrations/"],
               "pickle": ["_tree", "convert/", "torch/"]}


def floor_of(path):
    return max((f for f in MAY if path.startswith(f)), key=len, default=None)


def allowed(floor, include):
    return any(include.startswith(p) for p in MAY[floor])


def check_file(path, text):
    floor = floor_of(path)
    if floor is None:
        return
    for include in INCLUDE.findall(text):
        if OWN.match(include) and not allowed(floor, include):
            yield f"{path} includes {include}: {floor} may use only {', '.join(MAY[floor])}"
        if floor.startswith("core/") and any(include.startswith(p) for p in PURE):
            yield f"{path} includes <{include}>: core is pure"
        for system, files in ONLY.items():
            if include.startswith(system) and not re.fullmatch(files, path):
                yield f"{path} includes <{include}>: only {files} may"
    if OPS.search(text) and not OPS_FILES.fullmatch(path):
        yield f"{path} names a plugin's functions: only the doors in daemon/io call them"


def python_floor(parts):
    return parts[0] + "/" if len(parts) > 1 else parts[0].removesuffix(".py")


def imports_of(tree, depth):
    """What a module names: (own floor or None, top-level package or None). depth: packages between it and the root."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((None, a.name.split(".")[0]) for a in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield None, node.module.split(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.level == depth + 1:
            yield from ((n.split(".")[0], None) for n in ([node.module] if node.module else [a.name for a in node.names]))


def check_python(path, text):
    parts = path.removeprefix(PYTHON).split("/")
    floor = python_floor(parts)
    if floor not in PYTHON_MAY:
        yield f"{path} is on no floor: docs/architecture.md and this program name them"
        return
    for own, package in imports_of(ast.parse(text), len(parts) - 1):
        used = own and (own + "/" if own + "/" in PYTHON_MAY else own)
        if used in PYTHON_MAY and used not in [floor, *PYTHON_MAY[floor]]:
            yield f"{path} imports {used}: {floor} may use only {', '.join(PYTHON_MAY[floor])}"
        if package in PYTHON_ONLY and floor not in PYTHON_ONLY[package]:
            yield f"{path} imports {package}: only {', '.join(PYTHON_ONLY[package])} may"


def check(root):
    root = pathlib.Path(root)
    for path in sorted((root / PYTHON).rglob("*.py")):
        yield from check_python(str(path.relative_to(root)), path.read_text())
    for top in ("include", "core", "plugins", "client", "daemon"):
        for path in sorted((root / top).rglob("*.[ch]")):
            yield from check_file(str(path.relative_to(root)), path.read_text())


BAD = {
    "core/base/a.c": '#include "core/model/layout.h"',
    "core/model/a.c": '#include "core/proto/wire.h"',
    "core/proto/a.c": '#include "daemon/io/loop.h"',
    "core/checkpoint/a.c": "#include <pthread.h>",
    "core/model/b.c": "#include <time.h>",
    "client/a.c": '#include "core/proto/wire.h"',
    "client/b.c": '#include "daemon/io/loop.h"',
    "daemon/io/a.c": '#include "daemon/node/node.h"',
    "daemon/io/b.c": "#include <rdma/fabric.h>",
    "daemon/node/a.c": '#include "daemon/peer/peer.h"',
    "daemon/node/b.c": "#include <liburing.h>",
    "daemon/node/c.c": "static struct cairn_meta_ops o;",
    "daemon/peer/a.c": '#include "daemon/node/node.h"',
    "daemon/a.c": '#include "client/session.h"',
    "daemon/b.c": '#include "plugins/store-file/store-file.h"',
    "plugins/x/a.c": '#include "core/model/layout.h"',
    "daemon/io/c.c": "#include <dlfcn.h>",
    "include/cairn/a.h": '#include "core/base/error.h"',
    "client/c.c": "static struct cairn_store_ops *o;",
    "daemon/io/loop_a.c": "static struct cairn_codec_ops *o;",
    PYTHON + "session.py": "from . import _tree",
    PYTHON + "_load.py": "from .checkpointer import Checkpointer",
    PYTHON + "checkpointer.py": "def f():\n    import torch",
    PYTHON + "torch/a.py": "from ..integrations import lightning",
    PYTHON + "convert/a.py": "from ..torch.reader import StorageReader",
    PYTHON + "__init__.py": "import numpy",
    PYTHON + "launch.py": "import pickle",
    PYTHON + "elsewhere.py": "",
}
# and one for every header of the lists above
BAD.update({f"core/model/pure_{i}.c": f"#include <{h}>" for i, h in enumerate(PURE) if not h.startswith(tuple(ONLY))})
BAD.update({f"client/only_{i}.c": f"#include <{h}>" for i, h in enumerate(ONLY)})


def self_test():
    for path, text in BAD.items():
        with tempfile.TemporaryDirectory() as d:
            file = pathlib.Path(d) / path
            file.parent.mkdir(parents=True)
            file.write_text(text + "\n")
            found = list(check(d))
            assert len(found) == 1 and found[0].startswith(path), (path, found)
    with tempfile.TemporaryDirectory() as d:
        good = pathlib.Path(d) / "daemon/node/a.c"
        good.parent.mkdir(parents=True)
        good.write_text('#include "daemon/io/loop.h"\n#include "core/proto/wire.h"\n#include <stdio.h>\n')
        assert not list(check(d))


if sys.argv[1] == "--self-test":
    self_test()
else:
    problems = list(check(sys.argv[1]))
    print("\n".join(problems) or "every floor looks down")
    sys.exit(bool(problems))
