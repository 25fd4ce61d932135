# SPDX-License-Identifier: Apache-2.0
"""safetensors: one file, a directory with one, or a directory with the index that Hugging Face writes.

The header is untrusted: its length, its JSON, every dtype, shape and offset is checked before a byte of a
tensor is read, and the tensors must lie one after the other without overlap or hole up to the file's end."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import os
import re
import struct
from typing import Any, Dict, List, Optional, Tuple

from .. import _tree
from .boxes import Dims
from .errors import ConvertError
from .files import SourceFile, read_file
from .source import ITEMSIZE, Item, Source, Stored
from .trees import RESERVED, TREE, merge, tree_document, tree_of

_MAX_HEADER = 100_000_000  # bytes; what the format's own readers take
_MAX_DIMS = 16
INDEX = "model.safetensors.index.json"
_SLICE = "cairn.slice."  # in a file's metadata: which part of a tensor an entry is


def _no_duplicates(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = collections.Counter(names).most_common(1)[0][0]
        raise ValueError(f'"{twice}" is there twice')
    return found


def _header(file: SourceFile) -> Tuple[Dict[str, Any], int]:
    """The JSON header and where the tensors begin (byte)."""
    if file.size < 8:
        raise ConvertError("corrupt", f"{file.path}: {file.size} bytes are no safetensors file")
    length = struct.unpack("<Q", file.read(0, 8))[0]
    if length > _MAX_HEADER or length > file.size - 8:
        raise ConvertError(
            "corrupt",
            f"{file.path}: no safetensors file, or cut off: it announces a header of {length} bytes "
            f"in a file of {file.size} (a header has at most {_MAX_HEADER})",
        )
    try:
        header = json.loads(file.read(8, length), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise ConvertError(
            "corrupt", f"{file.path}: its header is no JSON object as safetensors has it: {error}"
        ) from None
    if not isinstance(header, dict):
        raise ConvertError("corrupt", f"{file.path}: its header is no JSON object")
    return header, 8 + length


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _entry(file: SourceFile, name: str, entry: Any) -> Tuple[str, Dims, int, int]:
    """dtype, shape and the bytes' begin and end of one tensor, each checked by itself."""
    where = f'{file.path}: tensor "{name}"'
    if not isinstance(entry, dict):
        raise ConvertError("corrupt", f"{where}: its entry is no object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in ITEMSIZE or dtype == "BYTES":
        raise ConvertError("unsupported", f"{where}: dtype {dtype!r} is not known here")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMS or not all(_count(n) for n in shape):
        raise ConvertError("corrupt", f"{where}: its shape is no list of at most {_MAX_DIMS} counts")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_count(n) for n in offsets):
        raise ConvertError("corrupt", f"{where}: data_offsets are no two counts")
    begin, end = offsets
    nbytes = math.prod(shape) * ITEMSIZE[dtype]
    if end - begin != nbytes:
        raise ConvertError(
            "corrupt",
            f"{where}: {dtype} of shape {shape} takes {nbytes} bytes, its offsets give {end - begin}",
        )
    return dtype, tuple(shape), begin, end


def _check_places(file: SourceFile, places: List[Tuple[int, int, str]], size: int) -> None:
    at, before = 0, ""
    for begin, end, name in sorted(places):
        if begin != at:
            what = "overlap" if begin < at else "leave a hole"
            raise ConvertError(
                "corrupt", f'{file.path}: tensors "{before}" and "{name}" {what} at byte {min(begin, at)}'
            )
        at, before = end, name
    if at != size:
        raise ConvertError(
            "corrupt",
            f"{file.path}: its tensors take {at} bytes, {size} are there: it is cut off or has a tail",
        )


def _slice_of(file: SourceFile, name: str, note: str, length: Dims) -> Tuple[str, Dims, Dims]:
    """Name, whole shape and offset of what ``cairn restore`` noted to be a part of a tensor."""
    try:
        place = json.loads(note)
        tensor, shape, offset = place["tensor"], tuple(place["shape"]), tuple(place["offset"])
        fits = (isinstance(tensor, str) and all(map(_count, shape)) and all(map(_count, offset))
                and len(shape) == len(offset) == len(length)
                and all(o + n <= s for o, n, s in zip(offset, length, shape)))  # fmt: skip
    except (ValueError, KeyError, TypeError, RecursionError):
        fits = False
    if not fits:
        raise ConvertError(
            "corrupt", f'{file.path}: the place that its metadata gives tensor "{name}" does not fit it'
        )
    return tensor, shape, offset


class _Taken:
    """Tensors of all files so far; documents apart."""

    def __init__(self) -> None:
        self.items: List[Item] = []
        self.documents: Dict[str, bytes] = {}
        self.places: Dict[Tuple[str, Dims], str] = {}
        self.step: Optional[int] = None

    def add(self, file: SourceFile, item: Item) -> None:
        place = (item.name, item.offset)
        if place in self.places:
            raise ConvertError(
                "exists",
                f'"{item.name}" is in {self.places[place]} and in {file.path}: import one file, or '
                "whole tensors (cairn restore --merge)",
            )
        self.places[place] = file.path
        self.items.append(item)


def _take_file(file: SourceFile, taken: _Taken, wanted: Optional[set]) -> None:
    header, base = _header(file)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ConvertError("corrupt", f"{file.path}: its metadata does not map words to words")
    places = []
    for name, raw in header.items():
        dtype, shape, begin, end = _entry(file, name, raw)
        places.append((begin, end, name))
        if wanted is not None and name not in wanted:
            raise ConvertError(
                "corrupt", f'{file.path}: tensor "{name}" is not in the index, or in another file there'
            )
        if name.startswith(RESERVED) and dtype == "U8":
            taken.documents[name] = b""  # read once the places are known to be right
            continue
        tensor, full, offset = name, shape, (0,) * len(shape)
        if _SLICE + name in metadata:
            tensor, full, offset = _slice_of(file, name, metadata[_SLICE + name], shape)
        taken.add(
            file, Item(tensor, dtype, full, offset, shape, Stored(file, base + begin, shape, ITEMSIZE[dtype]))
        )
    _check_places(file, places, file.size - base)
    for begin, end, name in places:
        if name in taken.documents:
            taken.documents[name] = file.read(base + begin, end - begin)
    missing = (wanted or set()) - set(header)
    if missing:
        raise ConvertError("corrupt", f'{file.path}: the index says that tensor "{min(missing)}" is in it')
    if re.fullmatch("[0-9]{1,30}", metadata.get("cairn.step", "")):
        taken.step = int(metadata["cairn.step"])


def _is_name(file: str) -> bool:
    """Of a file in the same directory?"""
    try:
        name = os.fsencode(file)
    except UnicodeEncodeError:
        return False
    return name not in (b"", b".", b"..") and b"/" not in name and b"\0" not in name


def _read_index(path: str) -> Dict[str, set]:
    """The names in each file, as the index has them."""
    try:
        text = read_file(path, _MAX_HEADER)
        weight_map = json.loads(text, object_pairs_hook=_no_duplicates)["weight_map"]
        files: Dict[str, set] = {}
        for name, file in weight_map.items():
            files.setdefault(file, set()).add(name)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConvertError("corrupt", f"{path}: no index as Hugging Face writes it: {error!r}") from None
    for file in files:
        if not isinstance(file, str) or not _is_name(file):
            raise ConvertError("corrupt", f"{path}: it names {file!r}, which is no file beside it")
    return files


def _files(path: str) -> Dict[str, Optional[set]]:
    """Paths to read, and the names that must be there (None: whatever is)."""
    if not os.path.isdir(path):
        return {path: None}
    index = os.path.join(path, INDEX)
    if os.path.exists(index):
        return {os.path.join(path, file): names for file, names in sorted(_read_index(index).items())}
    found = sorted(f for f in os.listdir(path) if f.endswith(".safetensors"))
    if "model.safetensors" in found:
        found = ["model.safetensors"]
    if not found:
        raise ConvertError(
            "not_found", f"{path}: neither .metadata (of DCP) nor {INDEX} nor a safetensors file is in it"
        )
    return {os.path.join(path, file): None for file in found}


def _with_tree(taken: _Taken) -> Tuple[List[Item], Dict[str, bytes]]:
    """What `cairn restore --documents` has added says how the tensors were nested, and which are of types
    that safetensors does not have. It is left out where it speaks of tensors that are not there."""
    trees = [
        _tree.read(data, name) for name, data in sorted(taken.documents.items()) if name.startswith(TREE)
    ]
    refs: List[_tree.TensorRef] = []
    for tree in trees:
        refs += [value for _, value in _tree.leaves_of(tree) if isinstance(value, _tree.TensorRef)]
    if not trees or not {ref.name for ref in refs} == {item.name for item in taken.items}:
        return taken.items, {}
    merged = trees[0]
    for tree in trees[1:]:
        merged = merge(merged, tree)
    joined = tree_of(
        merged, lambda kind: kind is _tree.TensorRef, lambda ref: ref.name, lambda ref: ref.dtype
    )
    if {leaf.name for leaf in joined.leaves} != {ref.name for ref in refs}:
        return taken.items, {}
    raw = {ref.name for ref in refs if ref.dtype is not None}
    items = [
        dataclasses.replace(item, dtype="BYTES") if item.name in raw and item.dtype == "U8" else item
        for item in taken.items
    ]
    return items, {TREE + "0": tree_document(joined)}


def open_safetensors(path: str) -> Source:
    """Opens a safetensors file or directory. Errors: ConvertError "corrupt", "unsupported", "exists",
    "not_found"; OSError."""
    taken = _Taken()
    files: List[SourceFile] = []

    def close() -> None:
        for file in files:
            file.close()

    try:
        for name, wanted in _files(path).items():
            files.append(SourceFile(name))
            _take_file(files[-1], taken, wanted)
        items, documents = _with_tree(taken)
    except BaseException:
        close()
        raise
    return Source(items, documents, taken.step, close=close)
