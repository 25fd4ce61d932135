# SPDX-License-Identifier: Apache-2.0
"""Saves after prepare(state, static=True): contents and plain values are those of now, and what was replaced against the promise is found."""
import gc
import warnings
import weakref

import numpy
import pytest
import torch
from test_live import assert_same, objects, states, step, with_pre_hook
from torch.nn import Parameter

import cairn


def large():
    """A state with more than one sample in it, and every kind of entry."""
    state = objects()
    many = {f"t{i}": torch.full((3,), float(i)) for i in range(200)}
    many.update(count=1, deep={"lr": 0.5, "view": many["t3"]})
    return {**state, "many": many, "rng": torch.get_rng_state(), "tied": many["t7"]}


class Saves:
    def __init__(self, job, monkeypatch):
        self.job, self.number, self.looked = job, 0, 0
        self.checkpointer = cairn.Checkpointer(job, raise_errors=True)
        refresh = cairn._layout.Layout.refresh
        monkeypatch.setattr(cairn._layout.Layout, "refresh", lambda *a: (setattr(self, "looked", self.looked + 1), refresh(*a))[1])

    def prepare(self, state):
        self.checkpointer.prepare(state, static=True)
        assert self.checkpointer._layout.is_promised

    def save(self, state, is_same=True):
        """Whether no tensor had to be looked at."""
        self.number += 1
        self.looked, expect = 0, states(state)
        self.checkpointer.save(self.number, state, wait="committed")
        if is_same:
            assert_same(cairn.read(self.job, self.number), expect)
        return self.looked == 0


@pytest.fixture
def saves(cluster, job, monkeypatch):
    made = Saves(job, monkeypatch)
    yield made
    made.checkpointer.close()


def train(state):
    step(state["model"], state["optimizer"])
    state["epoch"] += 1


def test_what_may_change_is_saved(saves):
    state = objects()
    saves.prepare(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(4):
            train(state)
            state["optimizer"].param_groups[1]["lr"] *= 0.333333
            state["optimizer"].param_groups[0]["betas"] = (0.5, 0.25 ** i)
            state["note"] = "x" * 10 ** i if i == 3 else "x"
            looked = not saves.save(state)
            assert looked == (i == 0)  # "note" is new


def test_dicts_arrays_and_small_entries(saves):
    state = large()
    saves.prepare(state)
    for i in range(3):
        train(state)
        state["rng"], state["many"]["count"] = torch.get_rng_state(), 10 ** (i * 12)
        state["many"]["deep"]["lr"] = "a" * i * 40
        state["many"]["t199"].add_(1)
        assert saves.save(state)
    state["tied"] = torch.ones(3)  # no promise was given for what is small: all is looked at, and it goes on
    assert not saves.save(state)
    assert saves.save(state)


def test_one_dict_of_many_tensors(saves):
    """Which is itself what was promised to stay."""
    state = {**{f"t{i}": torch.full((3,), float(i)) for i in range(200)}, "lr": 0.5, "deep": {"a": torch.ones(2), "n": 1}}
    saves.prepare(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            state["t150"].add_(1)
            state["lr"] *= 0.3
            state["deep"] = {"a": torch.full((2,), state["lr"]), "n": 2}
            assert saves.save(state)
    state["t7"] = torch.ones(3)
    with pytest.warns(RuntimeWarning, match='"t7"'):
        saves.save(state, is_same=False)
        saves.save(state)
    saves.prepare(state)
    with pytest.warns(RuntimeWarning, match="another dict"):
        saves.save({**state, "t8": torch.zeros(3)})
    saves.prepare(state)
    state["more"] = torch.zeros(3)
    with pytest.warns(RuntimeWarning, match="203 entries where it had 202"):
        saves.save(state)


def test_numpy_arrays(cluster, job):
    many = {f"a{i}": numpy.full(3, float(i)) for i in range(100)}
    with cairn.Checkpointer(job, raise_errors=True) as ckpt:
        ckpt.prepare({"many": many, "one": many["a1"]}, static=True)
        many["a99"] += 1
        ckpt.save(1, {"many": many, "one": numpy.ones(3)}, wait="committed")
        assert ckpt._layout.is_promised
        found = cairn.read(job, 1)
        assert all((found["many"][k] == v).all() for k, v in many.items()) and (found["one"] == 1).all()
        many["a98"] = numpy.zeros(3)
        with pytest.warns(RuntimeWarning, match="many.a98"):
            ckpt.save(2, {"many": many, "one": many["a1"]}, wait="committed")
        assert (cairn.read(job, 2)["many"]["a98"] == 0).all()


def data(state):
    p = state["model"].head.weight
    p.data = p.data + 1


CHANGES = {
    "parameter": (lambda s: setattr(s["model"].head, "weight", Parameter(torch.ones(4, 6))), "model.head.weight"),
    "other memory": (data, "model.head.weight"),
    "other shape": (lambda s: setattr(s["model"].head.weight, "data", s["model"].head.weight.data.view(6, 4)), "model.head.weight"),
    "layer": (lambda s: setattr(s["model"], "head", torch.nn.Linear(6, 4, bias=False)), "model.head"),
    "a parameter where none was": (lambda s: setattr(s["model"], "absent", Parameter(torch.ones(2))), "model.absent"),
    "buffer": (lambda s: s["model"].body.register_buffer("more", torch.ones(5)), "model.body"),
    "slot": (lambda s: s["optimizer"].state[s["model"].head.weight].update(exp_avg=torch.ones(4, 6)), "exp_avg"),
    "in a dict": (lambda s: s["many"].update(t150=torch.zeros(3)), "many.t150"),
    "more in a dict": (lambda s: s["many"].update(more=torch.zeros(3)), "many"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_was_replaced_is_found(saves, what):
    change, name = CHANGES[what]
    state = large()
    saves.prepare(state)
    promise = saves.checkpointer._layout._promise
    assert promise.saves == 2
    change(state)
    with pytest.warns(RuntimeWarning, match=name.replace(".", r"\.")) as caught:
        saves.save(state, is_same=False)
        saves.save(state)
    assert len(caught) == 1
    assert not saves.save(state)
    saves.prepare(state)
    state["epoch"] += 1
    assert saves.save(state)


AT_ONCE = {
    "group": lambda s: s["optimizer"].add_param_group({"params": [Parameter(torch.ones(3))], "lr": 0.5}),
    "loaded": lambda s: s["optimizer"].load_state_dict(s["optimizer"].state_dict()),
    "another optimizer": lambda s: s.update(optimizer=torch.optim.SGD(s["model"].parameters(), lr=0.1)),
    "another model": lambda s: s.update(model=objects()["model"]),
    "hook": lambda s: s["model"].register_state_dict_post_hook(lambda module, made, prefix, meta: made.update(mask=torch.ones(1))),
    "another dict": lambda s: s.update(many=dict(s["many"])),
}


@pytest.mark.parametrize("what", AT_ONCE)
def test_what_is_built_otherwise_is_found_at_once(saves, what):
    state = large()
    saves.prepare(state)
    assert saves.save(state)
    AT_ONCE[what](state)
    with pytest.warns(RuntimeWarning, match="static"):
        saves.save(state)


def test_before_the_first_step(saves):
    """The optimizer's state comes with it, and no promise is broken by that."""
    state = objects()
    state["optimizer"] = torch.optim.AdamW(state["model"].parameters())
    saves.prepare(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert saves.save(state)
        train(state)
        assert not saves.save(state)
        train(state)
        assert saves.save(state)


def test_an_object_that_has_to_be_asked(saves):
    """Its state dict is another each time; what is promised of the others holds."""
    class Extra(torch.nn.Linear):
        def get_extra_state(self):
            return {"calls": self.bias.sum().item()}

    state = {"extra": torch.nn.ModuleList(Extra(2, 2) for _ in range(40)), **objects()}
    saves.prepare(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            train(state)
            with torch.no_grad():
                state["extra"][7].bias.add_(1)
            assert saves.save(state)


def test_nothing_to_promise(cluster, job):
    with cairn.Checkpointer(job, raise_errors=True) as ckpt:
        ckpt.prepare({"a": torch.ones(3)}, static=True)
        ckpt.save(1, {"a": torch.zeros(3)}, wait="committed")
        assert torch.equal(cairn.read(job, 1)["a"], torch.zeros(3))


def test_a_closed_checkpointer_has_no_promise(saves):
    state = objects()
    saves.prepare(state)
    saves.save(state)
    saves.checkpointer.close()
    state["model"] = objects()["model"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        saves.save(state)


def test_pre_hooks_run(saves):
    state = objects()
    with_pre_hook(state)
    saves.prepare(state)
    before = state["model"].mask.clone()
    saves.checkpointer.save(1, state, wait="committed")
    assert torch.equal(cairn.read(saves.job, 1)["model"]["mask"], before + 1)


def test_memory_is_held_until_close(cluster, job):
    state = large()
    ckpt = cairn.Checkpointer(job, raise_errors=True)
    ckpt.prepare(state, static=True)
    ckpt.save(1, state, wait="committed")
    known = [weakref.ref(x) for x in (state["model"], state["model"].head.weight, state["optimizer"], state["many"]["t9"])]
    del state
    gc.collect()
    assert all(ref() is not None for ref in known)
    ckpt.close()
    gc.collect()
    assert [ref() for ref in known] == [None] * 4
