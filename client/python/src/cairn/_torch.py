# SPDX-License-Identifier: Apache-2.0
"""What Cairn knows about torch: dtypes, and where the pieces of a tensor lie in memory and in the whole.

The only module of the package, besides cairn.torch and the integrations, that imports torch.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import operator
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Optional

import torch

from . import _cuda, _lib
from .errors import InvalidError

_NAMES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
}
_TO_NAME = {getattr(torch, t): name for t, name in _NAMES.items() if hasattr(torch, t)}
_TO_DTYPE = {name: dtype for dtype, name in _TO_NAME.items()}
# dtypes whose tensors carry more than their bytes (scales, zero points).
_QUANTISED = {
    getattr(torch, t) for t in ("qint8", "quint8", "qint32", "quint4x2", "quint2x4") if hasattr(torch, t)
}


def dtype_name(dtype: torch.dtype) -> Optional[str]:
    """Cairn's (safetensors') name of a dtype, or None: then it is stored as "BYTES" with a last dimension of
    itemsize."""
    return _TO_NAME.get(dtype)


def dtype_of(name: str) -> Optional[torch.dtype]:
    """The dtype of a name: Cairn's ("BF16"; BYTES reads as uint8) or torch's ("complex128"); None where this
    torch has none."""
    found = torch.uint8 if name == "BYTES" else _TO_DTYPE.get(name) or vars(torch).get(name)
    return found if isinstance(found, torch.dtype) else None


def true_name(dtype: torch.dtype) -> Optional[str]:
    """What the tree has to note of a dtype: torch's name ("complex128") where Cairn has none, else None."""
    return None if dtype in _TO_NAME else str(dtype).removeprefix("torch.")


class Slice(NamedTuple):
    """A piece of a tensor in this process: memory, the shape of the whole, and where the piece begins in it
    (elements)."""

    local: torch.Tensor
    shape: tuple[int, ...]
    offset: tuple[int, ...]


def slices_of(tensor: Any, name: str = "tensor") -> list[Slice]:
    """The pieces of a tensor that this process has, as tensors that share its memory.

    A plain tensor is one piece, itself. A DTensor is what its placements give to this rank: one piece, or
    several where _StridedShard has interleaved them; none if this process is not of its mesh; a replica is
    given in full (see replica_of). A ShardedTensor is its local shards. name: for messages. Raises
    InvalidError for partial sums.
    """
    if is_dtensor(tensor):
        return _dtensor_slices(tensor, name)
    if hasattr(tensor, "local_shards") and hasattr(tensor, "metadata"):  # ShardedTensor
        shape = tuple(tensor.size())
        return [Slice(s.tensor, shape, tuple(s.metadata.shard_offsets)) for s in tensor.local_shards()]
    return [Slice(tensor, tuple(tensor.shape), (0,) * tensor.ndim)]


def is_dtensor(tensor: Any) -> bool:
    return (
        hasattr(tensor, "_local_tensor") and hasattr(tensor, "placements") and hasattr(tensor, "device_mesh")
    )


def replica_of(tensor: Any) -> tuple[int, int]:
    """Which of how many processes with the same bytes this is: (0, 1) but for DTensors with Replicate
    placements."""
    index, count = 0, 1
    if not is_dtensor(tensor):
        return index, count
    coordinate = tensor.device_mesh.get_coordinate()
    for dim, placement in enumerate(tensor.placements):
        if placement.is_replicate():
            n = tensor.device_mesh.size(dim)
            index, count = index * n + (coordinate[dim] if coordinate else 0), count * n
    return index, count


def stores(tensor: Any, name: str) -> bool:
    """Whether this process is the one of its equal replicas that stores the tensor. All of them agree without
    a word; names are spread over them."""
    index, count = replica_of(tensor)
    return count == 1 or zlib.crc32(name.encode("utf-8", "surrogatepass")) % count == index


# ---- DTensor -----------------------------------------------------------------------------------------------

Runs = list[tuple[int, int]]  # elements [begin, end) of a dimension, in the order in which they lie in memory


def _dtensor_slices(tensor: Any, name: str) -> list[Slice]:
    local, shape = tensor._local_tensor, tuple(tensor.shape)
    if hasattr(local, "local_shards") and hasattr(local, "local_offsets"):  # several shards in one
        return [Slice(s, shape, tuple(o)) for s, o in zip(local.local_shards(), local.local_offsets())]
    coordinate = tensor.device_mesh.get_coordinate()
    if coordinate is None:
        return []
    mesh = [tensor.device_mesh.size(d) for d in range(tensor.device_mesh.ndim)]
    runs = shard_runs(shape, mesh, coordinate, tensor.placements, name)
    expect = tuple(sum(end - begin for begin, end in r) for r in runs)
    if expect != tuple(local.shape):
        raise InvalidError(
            f'tensor "{name}": its local part is {list(local.shape)}, but its placements {tensor.placements} '
            f"on a mesh of {mesh} make it {list(expect)}: was it padded?"
        )
    return _boxes(local, shape, runs)


def shard_runs(
    shape: Sequence[int],
    mesh: Sequence[int],
    coordinate: Sequence[int],
    placements: Sequence[Any],
    name: str = "tensor",
) -> list[Runs]:
    """Which elements of each dimension the process at a coordinate of a mesh has. Placements are applied from
    the first mesh dimension to the last, each to what the ones before have left."""
    runs: list[Runs] = [[(0, n)] for n in shape]
    for dim, placement in enumerate(placements):
        if placement.is_partial():
            raise InvalidError(
                f'tensor "{name}" is a partial sum ({placements}): redistribute() it before it is '
                f"saved or loaded"
            )
        d = getattr(placement, "dim", None)
        if placement.is_replicate() or d is None:
            continue
        split = getattr(placement, "split_factor", 1)
        length = sum(end - begin for begin, end in runs[d])
        pieces = []
        for begin, end in _chunks(length, split):
            mine = _chunk(end - begin, mesh[dim], coordinate[dim])
            pieces.append((begin + mine[0], begin + mine[1]))
        runs[d] = _pick(runs[d], pieces)
    return runs


def _chunk(length: int, count: int, index: int) -> tuple[int, int]:
    """torch.chunk's rule: equal chunks, rounded up, the last ones shorter or empty."""
    size = -(-length // count) if length else 0
    return min(index * size, length), min((index + 1) * size, length)


def _chunks(length: int, count: int) -> list[tuple[int, int]]:
    return [_chunk(length, count, i) for i in range(count)]


def _pick(runs: Runs, pieces: Runs) -> Runs:
    """The given positions within what the runs list, neighbours joined."""
    picked: Runs = []
    for first, last in pieces:
        at = 0
        for begin, end in runs:
            low, high = max(first - at, 0), min(last - at, end - begin)
            at += end - begin
            if low >= high:
                continue
            if picked and picked[-1][1] == begin + low:
                picked[-1] = (picked[-1][0], begin + high)
            else:
                picked.append((begin + low, begin + high))
    return picked


def _boxes(local: torch.Tensor, shape: tuple[int, ...], runs: list[Runs]) -> list[Slice]:
    """One slice for each combination of runs: almost always one."""
    boxes: list[tuple[Any, tuple[int, ...]]] = [(local, ())]
    for d, dim_runs in enumerate(runs):
        more = []
        for part, offset in boxes:
            at = 0
            for begin, end in dim_runs or [(0, 0)]:
                n = end - begin
                more.append((part if len(dim_runs) < 2 else part.narrow(d, at, n), (*offset, begin)))
                at += n
        boxes = more
    return [Slice(part, shape, offset) for part, offset in boxes if part.numel() or 0 in shape]


# ---- memory ------------------------------------------------------------------------------------------------


def check(tensor: torch.Tensor, path: str) -> None:
    """Raises InvalidError for a tensor whose bytes are not all of it, or that has none."""
    what = None
    if tensor.layout is not torch.strided:
        what = f"has layout {tensor.layout}: save to_dense() of it"
    elif tensor.dtype in _QUANTISED:
        what = f"is quantised ({tensor.dtype}), with scales besides its bytes: save int_repr() and the scales"
    elif tensor.device.type == "meta":
        what = "is on the meta device and has no data: materialise it first"
    if what:
        raise InvalidError(f"{path} {what}")


def identity(tensor: Any) -> Optional[tuple[Any, ...]]:
    """Equal only for the same memory seen the same way; None for what has no memory."""
    local = tensor._local_tensor if is_dtensor(tensor) else tensor
    try:
        if local.numel() == 0:
            return None
        return (
            local.data_ptr(),
            local.dtype,
            local.shape,
            local.stride(),
            local.device,
            tuple(tensor.shape),
            getattr(tensor, "placements", None),
            local.is_conj(),
            local.is_neg(),
        )
    except (RuntimeError, NotImplementedError, AttributeError):  # wrappers without memory of their own
        return None


def bytes_strides(tensor: torch.Tensor) -> Optional[tuple[int, ...]]:
    """Strides in bytes; None for a dense, row-major tensor."""
    if tensor.is_contiguous():
        return None
    size = tensor.element_size()
    return tuple(s * size for s in tensor.stride())


class Piece(NamedTuple):
    """A slice of a tensor as cairn_tensor describes it. strides: in bytes, or None; address: 0 where libcairn
    cannot reach the memory, then `local` is to be copied; device: where the address is."""

    dtype: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    length: tuple[int, ...]
    strides: Optional[tuple[int, ...]]
    address: int
    local: Any
    device: int = _lib.HOST


def pieces_of(tensor: Any, path: str, direct: bool = False) -> list[Piece]:
    """The pieces of a tensor that this process has. path: for messages; direct: libcairn reads the memory of
    devices that it knows. Raises InvalidError."""
    return [_piece(s, path, direct) for s in slices_of(tensor, path)]


def _piece(s: Slice, path: str, direct: bool) -> Piece:
    local = s.local
    check(local, path)
    if local.is_conj() or local.is_neg():
        local = local.resolve_conj().resolve_neg()
    device = _reached(local, direct)
    address = 0 if device is None else _address(local, path)
    name, shape, offset, length, strides = (
        dtype_name(local.dtype),
        s.shape,
        s.offset,
        tuple(local.shape),
        bytes_strides(local),
    )
    if name is None:
        size = local.element_size()
        shape, offset, length = (*shape, size), (*offset, 0), (*length, size)
        name, strides = "BYTES", None if strides is None else (*strides, 1)
    return Piece(name, shape, offset, length, strides, address, local, device or _lib.HOST)


def _reached(local: torch.Tensor, direct: bool) -> Optional[int]:
    """The device whose memory libcairn can be told to read or write; None where it cannot."""
    device = _cuda.device_of(local)
    return device if direct or device == _lib.HOST else None


def _address(local: torch.Tensor, path: str) -> int:
    try:
        address = local.data_ptr()
    except RuntimeError:
        address = 0
    if not address and local.numel():
        raise InvalidError(
            f"{path} is a {type(local).__name__} without memory of its own: save the tensors that it is "
            f"made of"
        )
    return address


_PTR, _DENSE, _STRIDE = torch.Tensor.data_ptr, torch.Tensor.is_contiguous, torch.Tensor.stride
_CONJ, _NEG = torch.Tensor.is_conj, torch.Tensor.is_neg
_DTYPE, _SHAPE, _DEVICE = map(operator.attrgetter, ("dtype", "shape", "device"))
_SPEC, _LOCAL = map(operator.attrgetter, ("_spec", "_local_tensor"))


def _guards() -> Any:
    """torch's own comparison of many tensors with what they were, which torch.compile makes before each
    call: type, dtype, device, sizes, strides, lazy conjugation, in one call. It is not public: None where
    it is not there, or does not notice what it should."""
    try:
        from torch._C._dynamo.guards import TensorGuards

        first = [torch.zeros(2, 3), torch.zeros((), dtype=torch.complex64)]
        guard = _guard_of(first, TensorGuards)
        others = (
            torch.zeros(3, 2), torch.zeros(2, 3).t(), torch.zeros(6), torch.zeros(3, 2).t(),
            torch.zeros(2, 3, dtype=torch.int32), torch.zeros(2, 3, device="meta"), torch.nn.Parameter(first[0]),
        )  # fmt: skip
        lazy = torch.zeros((), dtype=torch.complex64).conj()
        if guard.check(*first) and not any(guard.check(t, first[1]) for t in others):
            return TensorGuards if not guard.check(first[0], lazy) else None
    except Exception:  # noqa: BLE001 - whatever another torch does not have, or has otherwise
        pass
    return None


def _guard_of(tensors: Sequence[torch.Tensor], kind: Any) -> Any:
    sizes, strides = map(torch.Tensor.size, tensors), map(_STRIDE, tensors)
    return kind(
        *tensors, dynamic_dims_sizes=list(map(list, sizes)), dynamic_dims_strides=list(map(list, strides))
    )


_GUARDS = _guards()
_AT_ONCE = 256
_MOST_GUARDS = 2  # kept: of a state given as objects, and as what state_dict() makes of them


class Signature:
    """How tensors lie in memory: dtypes, shapes, strides, devices and placements of all of them.

    addresses() is what a save costs in Python, so it makes few calls for many tensors, and keeps no object
    for each of them: a tuple for each would set off the garbage collector.
    """

    def __init__(self, tensors: Sequence[Any]) -> None:
        self._specs = _specs(tensors)
        local = _locals(tensors, self._specs)
        self._dtypes, self._shapes = list(map(_DTYPE, local)), list(map(_SHAPE, local))
        self._devices, self._dense = list(map(_DEVICE, local)), list(map(_DENSE, local))
        self._strides = [None if dense else _STRIDE(t) for t, dense in zip(local, self._dense)]
        self._views = [i for i, dense in enumerate(self._dense) if not dense]
        self._complex = any(d.is_complex for d in set(self._dtypes))
        self._guards: list[Any] = []

    def addresses(self, tensors: Sequence[Any]) -> Optional[list[int]]:
        """Where these (local) tensors lie, or None if they do not lie as the first ones did. Raises
        RuntimeError for what has no address."""
        specs = _specs(tensors)
        if len(tensors) != len(self._dtypes) or specs != self._specs:
            return None
        local = _locals(tensors, specs)
        for guards in self._guards:
            at = _checked(local, guards)
            if at is not None:
                return at
        if not self._fit(local):
            return None
        self._note_guards(local)
        return list(map(_PTR, local))

    def _fit(self, local: Sequence[Any]) -> bool:
        """One by one what guards compare at once."""
        if list(map(_DTYPE, local)) != self._dtypes or list(map(_DEVICE, local)) != self._devices:
            return False
        if not all(map(operator.eq, map(_SHAPE, local), self._shapes)):
            return False
        if list(map(_DENSE, local)) != self._dense or any(
            local[i].stride() != self._strides[i] for i in self._views
        ):
            return False
        return not (any(map(_NEG, local)) or (self._complex and any(map(_CONJ, local))))

    def address_of(self, number: int, tensor: Any) -> Optional[int]:
        """Where one of them lies, or None if it does not lie as it did. Raises RuntimeError."""
        specs = _specs([tensor])
        if (specs[0] if specs else None) != (self._specs[number] if self._specs else None):
            return None
        local = _locals([tensor], specs)[0]
        dense = self._dense[number]
        was = (self._dtypes[number], self._shapes[number], self._devices[number], dense)
        if (local.dtype, local.shape, local.device, local.is_contiguous()) != was:
            return None
        if (not dense and local.stride() != self._strides[number]) or local.is_conj() or local.is_neg():
            return None
        return local.data_ptr()

    def _note_guards(self, local: Sequence[Any]) -> None:
        """These fit and no guards knew: they are of other classes, or want gradients where the others did
        not."""
        if _GUARDS is None or not local:
            return
        with contextlib.suppress(Exception):  # whatever it does not take: there is the long way
            made = [_guard_of(local[i : i + _AT_ONCE], _GUARDS) for i in range(0, len(local), _AT_ONCE)]
            if _checked(local, made) is not None:  # a tensor that is there twice is refused by any
                self._guards = [made, *self._guards][:_MOST_GUARDS]


def _checked(local: Sequence[Any], guards: list[Any]) -> Optional[list[int]]:
    """Where the tensors lie, if they are what the guards know. A few at a time, so that what is looked at
    twice is still in the processor's cache."""
    at: list[int] = []
    for i, guard in enumerate(guards):
        some = local[i * _AT_ONCE : (i + 1) * _AT_ONCE]
        if not guard.check(*some):
            return None
        at.extend(map(_PTR, some))
    return at


def _specs(tensors: Sequence[Any]) -> Optional[list[Any]]:
    """Mesh, placements and shapes of DTensors; None where there are only ordinary tensors."""
    kinds = set(map(type, tensors)) - _ORDINARY
    if not kinds:
        return None
    one_of_each = dict(zip(map(type, tensors), tensors))
    distributed = {kind for kind, t in one_of_each.items() if is_dtensor(t)}
    if distributed == one_of_each.keys():
        return list(map(_SPEC, tensors))
    return [t._spec if type(t) in distributed else None for t in tensors]


def _locals(tensors: Sequence[Any], specs: Optional[list[Any]]) -> Sequence[Any]:
    if specs is None:
        return tensors
    if all(map(operator.is_not, specs, itertools.repeat(None))):
        return list(map(_LOCAL, tensors))
    return [t if s is None else t._local_tensor for t, s in zip(tensors, specs)]


_ORDINARY = {torch.Tensor, torch.nn.Parameter}


def has_one_place(tensor: Any) -> bool:
    """Whether all its pieces are views of one piece of memory, which Signature knows."""
    local = tensor._local_tensor if is_dtensor(tensor) else tensor
    return not hasattr(local, "local_shards") and not local.is_conj() and not local.is_neg()


def base_of(tensor: Any, direct: bool = False) -> int:
    """The address that Signature gives, or 0 where libcairn cannot reach it."""
    local = tensor._local_tensor if is_dtensor(tensor) else tensor
    reached = local.layout is torch.strided and _reached(local, direct) is not None
    return _address(local, "a tensor") if reached else 0


def is_distributed(tensor: Any) -> bool:
    """Whether it says itself which part of the whole this process has."""
    return is_dtensor(tensor) or hasattr(tensor, "local_shards")


def memory_of(tensors: Sequence[Any]) -> list[Any]:
    """What owns the memory of tensors that have one place."""
    return _cuda.memory_of(_locals(tensors, _specs(tensors)))


def is_on_device(value: Any) -> bool:
    """Whether it is a tensor whose memory libcairn reaches through a device."""
    return isinstance(value, torch.Tensor) and bool(_cuda.device_of(value))


def is_module(value: Any) -> bool:
    return isinstance(value, torch.nn.Module)


def memory_of_parameters(module: Any) -> set[int]:
    """Where the module's parameters lie."""
    return {identity(p)[0] for p in module.parameters() if identity(p) is not None}  # type: ignore[index]


def memory_written_by(optimizer: Any) -> set[int]:
    """Where the tensors lie that an optimizer's step changes: its parameters and its state."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    slots = [v for slot in optimizer.state.values() if isinstance(slot, dict) for v in slot.values()]
    groups = [v for group in optimizer.param_groups for v in group.values()]
    tensors = [v for v in (*params, *slots, *groups) if isinstance(v, torch.Tensor)]
    return {identity(t)[0] for t in tensors if identity(t) is not None}  # type: ignore[index]


def copy_in(source: torch.Tensor, address: int) -> None:
    """Copies a tensor of any device to dense memory at an address."""
    _at(address, tuple(source.shape), source.dtype).copy_(source)


def _at(address: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    import ctypes

    size = torch.empty((), dtype=dtype).element_size()
    for n in shape:
        size *= n
    if size == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=dtype).view(shape)


# ---- reading -----------------------------------------------------------------------------------------------


def name_of(tensor: Any) -> str:
    """A dtype as messages call it."""
    return dtype_name(tensor.dtype) or str(true_name(tensor.dtype))


def item_size(dtype: torch.dtype) -> int:
    return torch.empty((), dtype=dtype).element_size()


def empty(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(tuple(shape), dtype=dtype)


def copy_of(tensor: Any) -> Any:
    """In memory of its own."""
    return tensor.detach().clone()


def is_same(a: Any, b: Any) -> bool:
    """Whether two tensors of one dtype, shape and placement have the same bytes."""
    return torch.equal(_flat_bytes(a), _flat_bytes(b))


def _flat_bytes(tensor: Any) -> torch.Tensor:
    local = tensor._local_tensor if is_dtensor(tensor) else tensor
    return local.detach().resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8)


def targets_of(
    tensor: Any, path: str, reach: Callable[[int], bool]
) -> tuple[list[Piece], list[Callable[[], None]]]:
    """Where to read a tensor's pieces to, and what is to be done afterwards for those that Cairn cannot
    write to itself (on a device for which reach() says no, lazily conjugated). Raises InvalidError for
    memory that several elements share."""
    pieces: list[Piece] = []
    after: list[Callable[[], None]] = []
    for s in slices_of(tensor, path):
        check(s.local, path)
        if _overlaps(s.local):
            raise InvalidError(
                f"{path} is expanded, or windows that overlap: several of its elements are one place in "
                f"memory; load into clone() of it"
            )
        local, device = s.local, _cuda.device_of(s.local)
        direct = device is not None and (device == _lib.HOST or reach(device))
        if not direct or local.is_conj() or local.is_neg():
            local = torch.empty(local.shape, dtype=local.dtype)
            after.append(functools.partial(_copy_back, s.local.detach(), local))
        pieces.append(_piece(Slice(local, s.shape, s.offset), path, direct))
    return pieces, after


def _overlaps(tensor: torch.Tensor) -> bool:
    """Whether two elements share a place in memory."""
    if tensor.numel() == 0 or tensor.is_contiguous():
        return False
    steps = sorted((step, n) for n, step in zip(tensor.shape, tensor.stride()) if n > 1)
    reach, apart = 0, True
    for step, n in steps:
        apart, reach = apart and step > reach, reach + step * (n - 1)
    if apart or steps[0][0] == 0:
        return not apart
    places = torch.zeros((), dtype=torch.int64)  # strides that interleave, as (2, 3) do: each is looked at
    for step, n in steps:
        places = places.unsqueeze(-1) + torch.arange(n) * step
    return places.unique().numel() < tensor.numel()


def _copy_back(target: torch.Tensor, source: torch.Tensor) -> None:
    with torch.no_grad():
        target.copy_(source)
