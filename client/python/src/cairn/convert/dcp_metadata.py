# SPDX-License-Identifier: Apache-2.0
"""DCP's .metadata file, which is a pickle. Only the few classes that torch writes there are known, and none
of them is made: each load has plain records of its own in their place. Anything else is refused by name,
before it is called.
"""

from __future__ import annotations

import collections
import contextlib
import pickle
import resource
from dataclasses import dataclass
from typing import IO, Any, Dict, Iterator, List, Optional, Tuple

from .boxes import Dims
from .errors import ConvertError
from .files import SourceFile

_METADATA = "torch.distributed.checkpoint.metadata"
_RECORDS = {
    (_METADATA, "Metadata"), (_METADATA, "TensorStorageMetadata"), (_METADATA, "BytesStorageMetadata"),
    (_METADATA, "ChunkStorageMetadata"), (_METADATA, "TensorProperties"), (_METADATA, "MetadataIndex"),
    (_METADATA, "StorageMeta"), ("torch.distributed._shard.sharded_tensor.metadata", "TensorProperties"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.distributed.checkpoint.filesystem", "_StoragePrefix"),
}  # fmt: skip
_VALUES = {
    (_METADATA, "_MEM_FORMAT_ENCODING"), ("torch.distributed._shard.sharded_tensor.metadata", "MEM_FORMAT_ENCODING"),
    ("torch.serialization", "_get_layout"), ("torch._utils", "_get_layout"), ("torch", "device"),
}  # fmt: skip
_PATHS = ("pathlib", "pathlib._local")
_BUILTINS: Dict[Tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict, ("builtins", "set"): set, ("__builtin__", "set"): set,
}  # fmt: skip


_MOST_MEMORY = 1 << 30  # bytes that reading a small pickle may take
_MEMORY_OF_BYTE = 64  # and for each byte of a larger one; what torch writes takes less than 20


class Record:
    """What was pickled as an instance of a known class: its name and its attributes, or the tuple that it
    gave."""

    kind = ""

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.state: Any = {}

    def __setstate__(self, state: Any) -> None:
        self.args = ()
        self.state = state

    def get(self, name: str, default: Any = None) -> Any:
        state = self.__dict__.get("state", {})
        return state.get(name, default) if isinstance(state, dict) else default


class Dtype(str):
    """torch's name of a dtype ("float32")."""


def _is_dtype(module: str, name: str) -> bool:
    if module != "torch":
        return False
    import torch

    return isinstance(getattr(torch, name, None), torch.dtype)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self._known: Dict[Tuple[str, str], Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        key = (module, name)
        if key in _BUILTINS:
            return _BUILTINS[key]
        if key not in self._known:
            self._known[key] = self._stand_in(module, name)
        return self._known[key]

    @staticmethod
    def _stand_in(module: str, name: str) -> Any:
        if (module, name) in _RECORDS:
            return type(name, (Record,), {"kind": name})
        if (module, name) in _VALUES:
            return lambda *args: args
        if module == "torch" and name == "Size":
            return lambda *args: tuple(args[0]) if args else ()
        if module in _PATHS and name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"):
            return lambda *args: "/".join(map(str, args))
        if _is_dtype(module, name):
            return Dtype(name)
        raise pickle.UnpicklingError(
            f"it asks for {module}.{name}, which no checkpoint needs: it is not called"
        )

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to something outside of it")


@dataclass(frozen=True)
class Chunk:
    """A part of a tensor, or a value, and where its torch.save lies."""

    offset: Dims
    length: Dims
    file: str  # a name in the checkpoint's directory
    begin: int  # bytes
    nbytes: int


@dataclass(frozen=True)
class Entry:
    """A name of the checkpoint. dtype is torch's ("float32"), None for a value that is no tensor."""

    name: str
    dtype: Optional[str]
    shape: Dims
    chunks: List[Chunk]


@dataclass(frozen=True)
class DcpMetadata:
    entries: Dict[str, Entry]
    paths: Dict[str, Tuple[Any, ...]]  # where each name lies in the nested state dict; empty when it was flat


@contextlib.contextmanager
def _bounded_memory(nbytes: int) -> Iterator[None]:
    """This process gets no more than nbytes in addition: a pickle of ten bytes can ask for 64 GiB (the index of
    its memo is one number), and pickle's reader takes them. Then it is a MemoryError here."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", "rb") as file:
        limit = int(file.read().split()[0]) * resource.getpagesize() + nbytes
    if before[0] != resource.RLIM_INFINITY:
        limit = min(limit, before[0])
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _unpickle(path: str) -> Record:
    file = SourceFile(path)
    try:
        with file.window(0, file.size) as window, _bounded_memory(_MOST_MEMORY + _MEMORY_OF_BYTE * file.size):
            found = _Unpickler(window).load()
    except (ConvertError, OSError):
        raise
    except pickle.UnpicklingError as error:
        raise ConvertError("corrupt", f"{path}: {error}") from None
    except Exception as error:  # noqa: BLE001  a damaged pickle may end in any of them
        raise ConvertError(
            "corrupt", f"{path}: no metadata of torch.distributed.checkpoint: {type(error).__name__}: {error}"
        ) from None
    finally:
        file.close()
    if (
        not isinstance(found, Record)
        or found.kind != "Metadata"
        or not isinstance(found.get("state_dict_metadata"), dict)
    ):
        raise ConvertError("corrupt", f"{path}: it holds no metadata of torch.distributed.checkpoint")
    return found


def _dims(value: Any, what: str) -> Dims:
    if (
        not isinstance(value, tuple)
        or len(value) > 16
        or not all(type(n) is int and 0 <= n < 1 << 63 for n in value)
    ):
        raise ConvertError("corrupt", f"{what}: a shape or place that is no list of at most 16 counts")
    return value


class _Places:
    """Where the metadata says that each chunk is stored."""

    def __init__(self, path: str, storage_data: Any) -> None:
        self._path = path
        self._found: Dict[Tuple[str, Optional[Dims]], Record] = {}
        if not isinstance(storage_data, dict):
            raise ConvertError(
                "corrupt",
                f"{path}: it does not say where tensors are stored: DCP's file system writer made it?",
            )
        for index, info in storage_data.items():
            if isinstance(index, Record) and isinstance(info, Record) and info.kind == "_StorageInfo":
                offset = index.get("offset")
                self._found[str(index.get("fqn")), None if offset is None else _dims(offset, path)] = info

    def chunk(self, name: str, offset: Optional[Dims], length: Dims) -> Chunk:
        what = f'{self._path}: "{name}"'
        info = self._found.get((name, offset))
        if info is None and offset is not None and not any(offset):
            info = self._found.get((name, None))
        if info is None:
            raise ConvertError(
                "corrupt", f"{what}: where its part at {list(offset or ())} is stored is not said"
            )
        file, begin, nbytes = info.get("relative_path"), info.get("offset"), info.get("length")
        if (
            not isinstance(file, str)
            or file in ("", ".", "..")
            or "/" in file
            or "\\" in file
            or "\0" in file
        ):
            raise ConvertError(
                "corrupt", f"{what}: it names {file!r}, which is no file of the checkpoint's directory"
            )
        if not all(type(n) is int and 0 <= n < 1 << 63 for n in (begin, nbytes)):
            raise ConvertError("corrupt", f"{what}: a place in {file} that is no two counts")
        if info.get("transform_descriptors"):
            raise ConvertError(
                "unsupported",
                f"{what}: stored through {info.get('transform_descriptors')}: only what is stored "
                "as it is can be imported",
            )
        return Chunk(offset or (), length, file, begin, nbytes)


def _dtype(properties: Any, what: str) -> str:
    state = properties.__dict__.get("state") if isinstance(properties, Record) else None
    dtype = (
        state[0]
        if isinstance(state, tuple) and state
        else properties.get("dtype") if isinstance(state, dict) else None
    )
    if not isinstance(dtype, Dtype):
        raise ConvertError("corrupt", f"{what}: its dtype is not said")
    return str(dtype)


def _meet(a: Chunk, b: Chunk) -> bool:
    return all(o < p + m and p < o + n for o, n, p, m in zip(a.offset, a.length, b.offset, b.length))


def _check_apart(what: str, chunks: List[Chunk]) -> None:
    """No two chunks have an element in common. They are swept along the dimension that is cut most often."""
    if len(chunks) < 2 or not chunks[0].offset:
        return
    d = max(range(len(chunks[0].offset)), key=lambda i: len({c.offset[i] for c in chunks}))
    open_: List[Chunk] = []  # that reach to where the sweep is
    for chunk in sorted(chunks, key=lambda c: c.offset[d]):
        open_ = [c for c in open_ if c.offset[d] + c.length[d] > chunk.offset[d]]
        for other in open_:
            if _meet(chunk, other):
                raise ConvertError(
                    "corrupt", f"{what}: its parts at {list(other.offset)} and {list(chunk.offset)} overlap"
                )
        open_.append(chunk)


def _check_cover(what: str, shape: Dims, chunks: List[Chunk]) -> None:
    """Chunks within the tensor, as many elements as it has, and none of them twice: then none is missing.
    Nobody else finds that: chunks come from several ranks, of which each may save what others save, too."""
    total = 0
    for c in chunks:
        if (
            len(c.offset) != len(shape)
            or len(c.length) != len(shape)
            or any(o + n > s for o, n, s in zip(c.offset, c.length, shape))
        ):
            raise ConvertError(
                "corrupt",
                f"{what}: its part at {list(c.offset)} of {list(c.length)} is not within {list(shape)}",
            )
        total += _product(c.length)
    if total != _product(shape):
        raise ConvertError(
            "corrupt",
            f"{what}: its parts have {total} elements, a tensor of {list(shape)} has {_product(shape)}",
        )
    _check_apart(what, chunks)


def _product(dims: Dims) -> int:
    n = 1
    for d in dims:
        n *= d
    return n


def _tensor(path: str, name: str, entry: Record, places: _Places) -> Entry:
    what = f'{path}: "{name}"'
    shape = _dims(entry.get("size"), what)
    found = entry.get("chunks")
    if not isinstance(found, list) or not all(isinstance(c, Record) for c in found):
        raise ConvertError("corrupt", f"{what}: its parts are not listed")
    chunks = []
    for c in found:
        offset, length = _dims(c.get("offsets"), what), _dims(c.get("sizes"), what)
        if _product(length):
            chunks.append(places.chunk(name, offset, length))
    _check_cover(what, shape, chunks)
    return Entry(name, _dtype(entry.get("properties"), what), shape, chunks)


def _paths(planner_data: Any) -> Dict[str, Tuple[Any, ...]]:
    if not isinstance(planner_data, dict):
        return {}
    return {name: path for name, path in planner_data.items()
            if isinstance(name, str) and isinstance(path, tuple) and all(type(k) in (str, int) for k in path)}  # fmt: skip


def read_metadata(path: str) -> DcpMetadata:
    """Reads a .metadata file. Errors: ConvertError "corrupt" names what is wrong, or what it wanted to
    call."""
    found = _unpickle(path)
    places = _Places(path, found.get("storage_data"))
    entries: Dict[str, Entry] = {}
    for name, entry in found.get("state_dict_metadata").items():
        if not isinstance(name, str) or not isinstance(entry, Record):
            raise ConvertError("corrupt", f"{path}: an entry that is no tensor and no value")
        if entry.kind == "BytesStorageMetadata":
            entries[name] = Entry(name, None, (), [places.chunk(name, None, ())])
        elif entry.kind == "TensorStorageMetadata":
            entries[name] = _tensor(path, name, entry, places)
        else:
            raise ConvertError("corrupt", f'{path}: "{name}" is {entry.kind}')
    return DcpMetadata(entries, _paths(found.get("planner_data")))
