# SPDX-License-Identifier: Apache-2.0
"""The tree document: what goes in comes out, exactly; what cannot go in is named; what is malformed is refused and runs nothing."""
import collections
import json
import math
import pickle
import random
import struct
import sys

import numpy
import pytest
import torch
from torch.distributed.tensor import _utils
from torch.distributed.tensor.placement_types import Replicate, Shard, _StridedShard

import cairn
from cairn import _torch, _tree
from cairn._layout import Layout, leaf_tag

SEEDS = range(150)


def tree_of(state, pickle_allowed=False):
    return _tree.Tree(state, leaf_tag, lambda v: None, lambda v, p: None, pickle_allowed)


def same(a, b):
    """Equal in type and in every bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return struct.pack(">d", a) == struct.pack(">d", b)
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, dict):
        return len(a) == len(b) and all(same(k, m) and same(v, w) for (k, v), (m, w) in zip(a.items(), b.items()))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, numpy.generic):
        return a.dtype == b.dtype and a.tobytes() == b.tobytes()
    return a == b


SCALARS = [
    lambda r: None, lambda r: r.random() < 0.5, lambda r: r.randint(-5, 5), lambda r: r.getrandbits(r.randint(1, 200)) * r.choice([1, -1]),
    lambda r: r.choice([2**63 - 1, 2**63, -(2**63), -(2**63) + 1]), lambda r: r.uniform(-1, 1) * 10 ** r.randint(-300, 300),
    lambda r: r.choice([math.inf, -math.inf, -0.0, 5e-324, struct.unpack(">d", r.choice([b"\x7f\xf8", b"\xff\xf9"]) + r.randbytes(6))[0]]),
    lambda r: "".join(chr(r.choice([r.randint(0, 127), r.randint(0, 0x10FFFF)])) for _ in range(r.randint(0, 8))),
    lambda r: r.randbytes(r.randint(0, 9)), lambda r: bytearray(r.randbytes(3)), lambda r: complex(r.random(), -math.inf),
    lambda r: torch.Size([r.randint(0, 9) for _ in range(r.randint(0, 4))]), lambda r: r.choice([torch.bfloat16, torch.complex128, torch.bool]),
    lambda r: r.choice([torch.device("cpu"), torch.device("cuda:3")]),
    lambda r: r.choice([numpy.float32(r.random()), numpy.int64(-3), numpy.bool_(True), numpy.complex128(2j), numpy.str_("é"), numpy.datetime64("2026-01-01")]),
]


def a_key(r):
    return r.choice([lambda: f"k{r.randint(0, 99)}", lambda: r.randint(-9, 9), lambda: (1, f"{r.randint(0, 9)}"), lambda: None, lambda: r.random()])()


def a_value(r, depth):
    kind = r.randint(0, 6) if depth else 0
    if kind == 1:
        return {a_key(r): a_value(r, depth - 1) for _ in range(r.randint(0, 5))}
    if kind == 2:
        return collections.OrderedDict((a_key(r), a_value(r, depth - 1)) for _ in range(r.randint(0, 4)))
    if kind in (3, 4):
        return (list if kind == 3 else tuple)(a_value(r, depth - 1) for _ in range(r.randint(0, 5)))
    if kind == 5:
        return r.choice([set, frozenset])(a_key(r) for _ in range(r.randint(0, 4)))
    if kind == 6:
        return r.choice([[1, 2, 3], [0.5, 1.0], ["a", "b"], [True, None], [1, 2.5, "x"]])
    return r.choice(SCALARS)(r)


def a_state(seed, tensors=True):
    """A state dict, and the same with other values in the same places."""
    r = random.Random(seed)
    state = {f"v{i}": a_value(r, 4) for i in range(r.randint(1, 6))}
    if tensors:
        state["model"] = collections.OrderedDict((f"w{i}", torch.zeros(i)) for i in range(r.randint(0, 4)))
        state["mixed"] = {"t": torch.zeros(1), "x": a_value(r, 2), 3: [torch.zeros(2), a_value(r, 1)]}
    return state


def without_refs(tree):
    """The tree that was read, with a tensor of the state wherever a reference is."""
    if isinstance(tree, _tree.TensorRef):
        return "tensor", tree.name
    if isinstance(tree, dict):
        return type(tree)((k, without_refs(v)) for k, v in tree.items())
    return type(tree)(map(without_refs, tree)) if type(tree) in (list, tuple) else tree


def with_names(state, path=()):
    if isinstance(state, torch.Tensor):
        return "tensor", _tree.name_of(path)
    if isinstance(state, dict):
        return type(state)((k, with_names(v, (*path, k))) for k, v in state.items())
    return type(state)(with_names(v, (*path, i)) for i, v in enumerate(state)) if type(state) in (list, tuple) else state


@pytest.mark.parametrize("seed", SEEDS)
def test_what_goes_in_comes_out(seed):
    state = a_state(seed)
    tree = tree_of(state)
    assert tree.text.isascii()
    assert same(without_refs(_tree.read(tree.text.encode())), with_names(state)), state
    assert [n.name for n in tree.leaves] == [_tree.name_of(p) for p, v in _tree.leaves_of(state) if isinstance(v, torch.Tensor)]


def vary(r, value):
    """Another value of the kind that the fast path has to write anew."""
    if isinstance(value, torch.Tensor):
        return torch.zeros(value.shape)
    if isinstance(value, dict):
        return type(value)((k, vary(r, v)) for k, v in value.items())
    if type(value) in (list, tuple) and any(isinstance(v, (torch.Tensor, dict, list, tuple)) for v in value):
        return type(value)(vary(r, v) for v in value)
    return r.choice(SCALARS)(r) if r.random() < 0.3 else value


@pytest.mark.parametrize("seed", SEEDS)
def test_a_refresh_says_what_a_new_tree_says(seed):
    """Catches text that is kept although something in it has changed."""
    state, r = a_state(seed), random.Random(seed + 1000)
    tree = tree_of(state)
    later = vary(r, state)
    if r.random() < 0.3:
        victim = r.choice(["model", "mixed"])
        later[victim] = {**later[victim], "another": torch.zeros(1)}
    values = tree.refresh(later)
    if values is None:
        return
    assert tree.text == tree_of(later).text
    assert [id(v) for v in values] == [id(v) for _, v in _tree.leaves_of(later) if isinstance(v, torch.Tensor)]


@pytest.mark.parametrize("change", [
    lambda s: s["m"].update(c=torch.zeros(1)), lambda s: s["m"].pop("a"), lambda s: s["m"].update(a=1), lambda s: s.update(m=[s["m"]]),
    lambda s: s.update(m={"b": s["m"]["b"], "a": s["m"]["a"]}), lambda s: s.update(x=torch.zeros(1)), lambda s: s.update(x=[torch.zeros(1)]),
    lambda s: s.update(i={True: s["i"][1]}), lambda s: s["l"].append(torch.zeros(1)), lambda s: s["m"].update(a=torch.nn.Parameter(torch.zeros(1))),
    lambda s: s.update(l=tuple(s["l"]))])
def test_another_structure_is_noticed(change):
    state = {"m": {"a": torch.zeros(1), "b": torch.zeros(1)}, "x": 1, "i": {1: torch.zeros(1)}, "l": [torch.zeros(1), 2]}
    tree = tree_of(state)
    assert tree.refresh(state) is not None
    change(state)
    assert tree.refresh(state) is None


def test_versions_of_modules_are_kept():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    tree = tree_of({"model": model.state_dict()})
    back = _tree.read(tree.text.encode())["model"]
    assert back._metadata == model.state_dict()._metadata
    assert tree.refresh({"model": model.state_dict()}) is not None
    other = model.state_dict()
    other._metadata["1"]["version"] = 99
    assert tree.refresh({"model": other}) is None


Point = collections.namedtuple("Point", "x y")


class Thing:
    pass


def cycle():
    state = {"a": []}
    state["a"].append(state["a"])
    return state


@pytest.mark.parametrize("state, said", [
    ({"a": {"hook": lambda: 1}}, r"state_dict\['a'\]\['hook'\] is a builtins.function, code.*drop it.*pickle=True"),
    ({"a": [1, Thing()]}, r"state_dict\['a'\]\[1\] is a .*Thing.*pickle=True"),
    ({"p": Point(1, 2)}, r"state_dict\['p'\] is a .*Point, a named tuple.*_asdict"),
    ({"a": {torch.zeros(1)}}, "tensor in a set"),
    (cycle(), "contain itself"),
    ({"a.b": torch.zeros(1), "a": {"b": torch.zeros(1)}}, r"state_dict\['a'\]\['b'\] and state_dict\['a\.b'\] would both be named 'a\.b'"),
    ({1: torch.zeros(1), "1": torch.zeros(1)}, "both be named '1'"),
    ({".cairn/tree/0": torch.zeros(1)}, "no tensor may be"), ({"": torch.zeros(1)}, "no tensor may be"),
])
def test_what_cannot_be_stored_is_named(state, said):
    with pytest.raises(cairn.InvalidError, match=said):
        tree_of(state)


def deep(levels):
    state = {}
    for _ in range(levels):
        state = {"a": [state]}
    return state


def test_deep_states_come_back_or_are_refused():
    assert _tree.read(tree_of(deep(49)).text.encode()) == deep(49)
    with pytest.raises(cairn.InvalidError, match="nested"):
        tree_of(deep(100))

    def from_far_down(n):
        return from_far_down(n - 1) if n else tree_of(deep(49))

    with pytest.raises(cairn.InvalidError, match="too deeply for this place"):
        from_far_down(sys.getrecursionlimit() - 250)


def test_control_characters_do_not_get_into_names():
    assert [leaf.name for leaf in tree_of({"a\nb": torch.zeros(1), "\ud800": torch.zeros(1)}).leaves] == ["a\\nb", "\\ud800"]


RAN = []


def explode():
    RAN.append(1)


class Bomb:
    def __reduce__(self):
        return explode, ()


def test_pickles_are_made_and_read_only_where_asked():
    with pytest.raises(cairn.InvalidError, match="pickle=True"):
        tree_of({"a": Bomb()})
    document = tree_of({"a": Bomb()}, pickle_allowed=True).text.encode()
    del RAN[:]
    with pytest.raises(cairn.InvalidError, match=r"state_dict\['a'\] is a pickle.*allow_pickle=True"):
        _tree.read(document)
    assert not RAN
    _tree.read(document, allow_pickle=True)
    assert RAN


# ---- malformed documents ----

TAGS = sorted(_tree._READERS) + ["", "object", "__class__", None, 3, []]


def a_node(r, depth=2):
    """Something that looks like a node, mostly wrong."""
    bomb = "".join(f"{b:02x}" for b in pickle.dumps(Bomb()))
    leaf = r.choice([None, True, 1, 2**80, -1.5, "", "x", "zz==", "float32", "O", "|O8", "<f8", "nan", "os", "__import__", bomb, "load", "cuda:99999", [], {}])
    if depth == 0 or r.random() < 0.2:
        return leaf
    fields = {"t": r.choice(TAGS)}
    for field in r.sample(["v", "k", "n", "d", "m"], r.randint(0, 4)):
        fields[field] = r.choice([a_node(r, depth - 1), [a_node(r, depth - 1) for _ in range(r.randint(0, 3))], leaf])
    return fields


def places(node, found):
    for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
        found.append((node, key))
        if isinstance(value, (dict, list)):
            places(value, found)
    return found


def mutate(r, document):
    for _ in range(r.randint(1, 4)):
        where, key = r.choice(places(document, []))
        what = r.random()
        if what < 0.2 and isinstance(where, dict):
            del where[key]
        elif what < 0.6:
            where[key] = a_node(r)
        else:
            other, there = r.choice(places(document, []))
            where[key] = json.loads(json.dumps(other[there]))  # a copy: no cycles
        if not document:
            break
    return document


@pytest.mark.parametrize("seed", range(400))
def test_a_malformed_document_is_refused_and_runs_nothing(seed):
    r = random.Random(seed)
    state = a_state(seed)
    state["p"] = Bomb()
    text = tree_of(state, pickle_allowed=True).text
    del RAN[:]
    for _ in range(5):
        try:
            _tree.read(json.dumps(mutate(r, json.loads(text))).encode())
        except (cairn.CorruptError, cairn.InvalidError) as e:
            assert "tree document" in str(e)
    for _ in range(5):
        data = bytearray(text.encode())
        for _ in range(r.randint(1, 3)):
            data[r.randrange(len(data))] = r.randrange(256)
        try:
            _tree.read(bytes(data[: r.randint(0, len(data))]) if r.random() < 0.3 else data)
        except (cairn.CorruptError, cairn.InvalidError):
            pass
    assert not RAN


@pytest.mark.parametrize("document", [
    b"", b"[]", b"{}", b'{"v":1}', b'{"v":true,"tree":1}', b'{"v":1,"tree":NaN}', b"\xff", b"[" * 100000, b'{"v":1,"tree":' + b'{"t":"list","v":[' * 5000 + b"]}" * 5000 + b"}",
    b'{"v":1,"tree":{"t":"dict","k":["a","a"],"v":[1,2]}}', b'{"v":1,"tree":{"t":"dict","k":[{"t":"list","v":[]}],"v":[2]}}',
    b'{"v":1,"tree":{"t":"number","d":"|O8","v":"0000000000000000"}}', b'{"v":1,"tree":' + b"1" * 5000 + b"}",
    b'{"v":1,"tree":{"t":"dtype","v":"load"}}', b'{"v":1,"tree":{"t":"ndarray","n":"a","d":"O"}}', b'{"v":2,"tree":1}'])
def test_no_tree(document):
    with pytest.raises((cairn.CorruptError, cairn.InvalidError)):
        _tree.read(document)


# ---- where DTensors' pieces lie ----


@pytest.mark.parametrize("seed", range(60))
def test_pieces_of_a_dtensor_are_where_torch_says(seed):
    """Against torch's own function, for any placements on meshes of up to three dimensions; catches off-by-ones of uneven shards."""
    r = random.Random(seed)
    shape = [r.randint(0, 13) for _ in range(r.randint(1, 3))]
    mesh = [r.randint(1, 4) for _ in range(r.randint(1, 3))]
    dim = lambda: r.randrange(len(shape))  # noqa: E731
    placements = [r.choice([Shard(dim()), Replicate(), _StridedShard(dim(), split_factor=r.randint(2, 3))]) for _ in mesh]
    count = math.prod(mesh)
    seen = numpy.zeros(shape, int)
    for rank in range(count):
        coordinate = [int(c) for c in numpy.unravel_index(rank, mesh)]
        runs = _torch.shard_runs(shape, mesh, coordinate, placements)
        local, offset = _utils._compute_local_shape_and_global_offset(tuple(shape), tuple(mesh), coordinate, placements)
        lengths = tuple(sum(e - b for b, e in dim_runs) for dim_runs in runs)
        assert lengths == tuple(local)
        if 0 not in lengths:
            assert tuple(dim_runs[0][0] for dim_runs in runs) == tuple(offset)
        for box in _torch._boxes(torch.zeros(lengths), tuple(shape), runs):
            seen[tuple(slice(o, o + n) for o, n in zip(box.offset, box.local.shape))] += 1
    replicas = math.prod(m for m, p in zip(mesh, placements) if p.is_replicate())
    assert (seen == replicas).all(), (shape, mesh, placements)


# ---- layouts ----


def test_a_layout_is_made_once():
    model = torch.nn.Linear(3, 4)
    state = {"m": model.state_dict(), "n": numpy.arange(4.0), "step": 1, "tied": model.weight}
    layout = Layout(state)
    assert layout.table.names == ["m.weight", "m.bias", "n", ".cairn/tree/0"]
    assert layout.refresh({**state, "m": model.state_dict(), "step": 2})
    for change in ({"n": numpy.arange(4)}, {"tied": model.weight.clone()}, {"m": torch.nn.Linear(3, 5).state_dict()}, {"m": model.half().state_dict()},
                   {"n": numpy.arange(8.0)[::2]}):
        assert not Layout(state).refresh({**state, **change}), change


def test_a_document_keeps_its_room():
    """So that layout and plan stay the same from save to save."""
    layout = Layout({"w": torch.zeros(2), "log": "x" * 10})
    room = layout._room
    assert layout.refresh({"w": torch.zeros(2), "log": "x" * 500}) and layout._room == room
    assert not layout.refresh({"w": torch.zeros(2), "log": "x" * 50000})
    larger = Layout({"w": torch.zeros(2), "log": "x" * 50000}, before=layout)
    assert Layout({"w": torch.zeros(2)}, before=larger)._room == larger._room >= 50000


@pytest.mark.parametrize("tensor, said", [
    (torch.zeros(2, 2).to_sparse(), "to_dense"), (torch.zeros(2, device="meta"), "meta device"),
    (torch.quantize_per_tensor(torch.zeros(2), 1.0, 0, torch.quint8), "quantised"), (numpy.array([None]), "no plain bytes"),
    (numpy.zeros(2, dtype=[("a", "f4")]), "no plain bytes")])
def test_tensors_that_are_more_than_bytes_are_refused(tensor, said):
    with pytest.raises(cairn.InvalidError, match=rf"state_dict\['x'\].*{said}"):
        Layout({"x": tensor})
