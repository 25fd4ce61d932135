# SPDX-License-Identifier: Apache-2.0
"""Saves after the first one take the tensors of modules and optimizers from where they are. Whatever is changed in between, what is saved is
what state_dict() would have given."""
import copy
import gc
import weakref

import pytest
import torch
from torch.nn import Parameter

import cairn
from cairn import _layout, _live, _torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Sequential())
        self.head = torch.nn.Linear(6, 4, bias=False)
        self.nothing = None
        self.register_parameter("absent", None)
        self.register_buffer("mask", torch.ones(4))
        self.register_buffer("cache", torch.zeros(4), persistent=False)
        self.shared = self.body[0]

    def forward(self, x):
        return self.head(self.body(x)) * self.mask


def objects():
    torch.manual_seed(7)
    model = Net()
    optimizer = torch.optim.AdamW([{"params": model.body.parameters(), "lr": 0.1}, {"params": model.head.parameters(), "lr": 0.2}])
    step(model, optimizer)
    return {"model": model, "optimizer": optimizer, "epoch": 1}


def step(model, optimizer):
    model(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def states(state):
    return {k: copy.deepcopy(v.state_dict()) if hasattr(v, "state_dict") else v for k, v in state.items()}


def assert_same(a, b, path="state"):
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b), path
    elif isinstance(a, dict):
        assert list(a) == list(b), path
        for k in a:
            assert_same(a[k], b[k], f"{path}.{k}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b)):
            assert_same(x, y, f"{path}.{i}")
    else:
        assert a == b, path


class Saves:
    """Saves a state again and again, and reads each back. asked: how often save() called state_dict() of a module or an optimizer."""

    def __init__(self, job, monkeypatch):
        self.job, self.asked, self.number = job, 0, 0
        self.checkpointer = cairn.Checkpointer(job, raise_errors=True)
        for kind in (torch.nn.Module, torch.optim.Optimizer):
            monkeypatch.setattr(kind, "state_dict", self.counting(kind.state_dict))

    def counting(self, real):
        def state_dict(this, *args, **kwargs):
            self.asked += not kwargs  # a module's children are called with some
            return real(this, *args, **kwargs)
        return state_dict

    def save(self, state):
        """Whether it took all from where it is."""
        self.number += 1
        expect, self.asked = states(state), 0
        self.checkpointer.save(self.number, state, wait="committed")
        asked = self.asked
        assert_same(cairn.read(self.job, self.number), expect)
        return asked == 0


@pytest.fixture
def saves(cluster, job, monkeypatch):
    made = Saves(job, monkeypatch)
    yield made
    made.checkpointer.close()


def test_nothing_is_asked_for_twice(saves):
    state = objects()
    assert not saves.save(state)
    for epoch in range(2, 5):
        step(state["model"], state["optimizer"])
        state["epoch"] = epoch
        state["optimizer"].param_groups[1]["lr"] *= 0.5
        assert saves.save(state)
    with torch.no_grad():
        state["model"].mask.fill_(3.0)
    assert saves.save(state)


def data_of(value):
    def change(state):
        p = state["model"].head.weight
        p.data = value(p.data)
    return change


def set_param(state):
    state["model"].head.weight = Parameter(torch.full((4, 6), 5.0))


def add_group(state):
    state["optimizer"].add_param_group({"params": [Parameter(torch.ones(3))], "lr": 0.5})


def swap_params(state):
    """The same parameters, numbered otherwise."""
    params = state["optimizer"].param_groups[0]["params"]
    params[0], params[2] = params[2], params[0]


def reload_optimizer(state):
    state["optimizer"].load_state_dict(copy.deepcopy(state["optimizer"].state_dict()))
    step(state["model"], state["optimizer"])


def hide_buffer(state):
    state["model"].register_buffer("mask", state["model"].mask, persistent=False)


def with_hook(state):
    state["model"].register_state_dict_post_hook(lambda module, made, prefix, meta: made.update(mask=torch.ones(1)))


def with_pre_hook(state):
    """What FSDP2 does: the parameters are made what they are to be saved as."""
    def hook(module, prefix, keep_vars):
        with torch.no_grad():
            module.mask.add_(1)
    state["model"].register_state_dict_pre_hook(hook)


def slot(key, value):
    def change(state):
        state["optimizer"].state[state["model"].head.weight][key] = value
    return change


CHANGES = {
    "parameter": set_param,
    "parameter of another dtype": data_of(lambda d: d.to(torch.bfloat16)),
    "the same memory seen otherwise": data_of(lambda d: d.view(6, 4)),
    "the same memory transposed": data_of(lambda d: d.t()),
    "the same shape, other strides": data_of(lambda d: d.t().contiguous().t()),
    "other memory": data_of(lambda d: d + 1),
    "resized": lambda state: state["optimizer"].state[state["model"].head.weight]["exp_avg"].resize_(2, 3),
    "no parameter": lambda state: setattr(state["model"].body[0], "bias", None),
    "a parameter where none was": lambda state: setattr(state["model"], "absent", Parameter(torch.ones(2))),
    "buffer": lambda state: state["model"].register_buffer("more", torch.ones(5)),
    "hidden buffer": hide_buffer,
    "layer": lambda state: state["model"].body.append(torch.nn.Linear(2, 2)),
    "layer of the same kind": lambda state: setattr(state["model"], "head", torch.nn.Linear(6, 4, bias=False)),
    "layers swapped": lambda state: setattr(state["model"], "body", torch.nn.Sequential(*reversed(list(state["model"].body)))),
    "untied": lambda state: setattr(state["model"], "shared", torch.nn.Linear(4, 6)),
    "renamed": lambda state: state["model"]._modules.__setitem__("new", state["model"]._modules.pop("head")),
    "lr": lambda state: state["optimizer"].param_groups[0].update(lr=0.125),
    "an entry of a group": lambda state: state["optimizer"].param_groups[0].update(added=[1, "a"]),
    "lr as a tensor": lambda state: state["optimizer"].param_groups[0].update(lr=torch.tensor(0.25)),
    "group": add_group,
    "parameters renumbered": swap_params,
    "state of the optimizer": slot("exp_avg", torch.full((4, 6), 3.0)),
    "an entry of its state": slot("more", torch.ones(2)),
    "a value in its state": slot("exp_avg", None),
    "loaded optimizer": reload_optimizer,
    "another optimizer": lambda state: state.update(optimizer=torch.optim.SGD(state["model"].parameters(), lr=0.1, momentum=0.9)),
    "another model": lambda state: state.update(model=Net()),
    "a state dict for the object": lambda state: state.update(model=state["model"].state_dict()),
    "its tensors not in order": lambda state: state["model"].head._parameters.update(bias=Parameter(torch.ones(4))),
    "hook": with_hook,
    "an object's own state_dict": lambda state: setattr(state["model"], "state_dict", lambda: {"own": torch.ones(1)}),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_saved(saves, what):
    state = objects()
    saves.save(state)
    assert saves.save(state)
    CHANGES[what](state)
    saves.save(state)
    saves.save(state)


def test_pre_hooks_run(saves):
    """Of a module in its place as by state_dict(): once for each save."""
    state = {"model": Net()}
    with_pre_hook(state)
    saves.checkpointer.save(1, state, wait="committed")
    before = state["model"].mask.clone()
    saves.checkpointer.save(2, state, wait="committed")
    assert torch.equal(state["model"].mask, before + 1)
    assert torch.equal(cairn.read(saves.job, 2)["model"]["mask"], before + 1)


def test_other_ways_are_asked(saves):
    """Extra state, states of other classes and an optimizer that has not stepped are what they say."""
    class Extra(torch.nn.Linear):
        def get_extra_state(self):
            return {"calls": 3}

    class Optimizer(torch.optim.SGD):
        def state_dict(self):
            return {"own": torch.ones(2)}

    model = Extra(2, 2)
    state = {"model": model, "sgd": Optimizer(model.parameters(), lr=0.1), "new": torch.optim.AdamW(model.parameters())}
    for _ in range(6):
        saves.save(state)


def test_nothing_is_held(cluster, job):
    """Neither the model nor its memory, once the save has been made."""
    state = objects()
    with cairn.Checkpointer(job, raise_errors=True) as ckpt:
        for number in (1, 2):
            ckpt.save(number, state, wait="committed")
        known = [weakref.ref(x) for x in (state["model"], state["model"].body, state["model"].head.weight, state["optimizer"])]
        del state
        gc.collect()
        assert [ref() for ref in known] == [None] * 4


def test_without_guards(monkeypatch):
    """Where torch has no guards of its own, or they do not notice what they should, each attribute is compared."""
    tensors = [torch.randn(2, 3), torch.randn(3, dtype=torch.complex64)]
    for guards in (_torch._GUARDS, None):
        monkeypatch.setattr(_torch, "_GUARDS", guards)
        signature = _torch.Signature(tensors)
        assert signature.addresses(tensors) == signature.addresses(tensors) == [t.data_ptr() for t in tensors]
        assert bool(signature._guards) == (guards is not None)
        for other in (tensors[0].t(), tensors[0].view(3, 2), tensors[0].double(), torch.zeros(2, 3, device="meta")):
            assert signature.addresses([other, tensors[1]]) is None
        assert signature.addresses([tensors[0], tensors[1].conj()]) is None
        assert signature.addresses([Parameter(tensors[0]), tensors[1]]) == [t.data_ptr() for t in tensors]


def test_torch_has_guards():
    """Of the torch that is tested with; without them a save is still right, and slower."""
    assert _torch._GUARDS is not None


def test_order_of_shared_and_nested_modules():
    model = Net()
    model.again, model.body.extra = model.body, model.shared
    live = _live.live(model, model.state_dict())
    assert [t.data_ptr() for t in live.tensors()] == [t.data_ptr() for t in model.state_dict().values()]
    layout = _layout.Layout({"model": model.state_dict()})
    layout.watch({"model": model.state_dict()}, {"model": model})
    assert layout.refresh({"model": model}) and len(layout.table) > 4
