# SPDX-License-Identifier: Apache-2.0
"""Modules and optimizers whose state_dict() holds their own tensors and nothing else: a later save takes
the tensors from where they are, without the thousands of objects that state_dict() makes.

collected once   state_dict(), and in which order its tensors stand in the object
each save        the same modules, names, kinds of values, parameters and groups? then the tensors of now

All comparisons are single calls over many objects. No tensor and no module is held between saves. What is
anything else (hooks that change the state dict, state of other classes, extra state) is not taken:
state_dict() is called then, as ever.
"""

from __future__ import annotations

import collections
import operator
import weakref
from collections.abc import Iterable
from itertools import accumulate, chain
from typing import Any, Optional

import torch

from ._torch import identity
from ._tree import Fixed, Known

_MODULE, _OPTIMIZER = torch.nn.Module, torch.optim.Optimizer
_DICTS = (dict, collections.OrderedDict)
_FIXED = frozenset((type(None), bool, str))  # numbers are likely to be others at each save
_CHILDREN = operator.attrgetter("_modules")
_OWN = operator.attrgetter("_parameters", "_buffers")
_PRE_HOOKS, _HOOKS = map(operator.attrgetter, ("_state_dict_pre_hooks", "_state_dict_hooks"))
_OWN_WAYS = ("state_dict", "_save_to_state_dict", "get_extra_state")


def is_live(value: Any) -> bool:
    """Whether it is of a kind that live() may take."""
    return isinstance(value, (_MODULE, _OPTIMIZER))


def live(value: Any, state: Any) -> Optional[Any]:
    """A LiveModule or LiveOptimizer of an object with this state dict; None for what can only be asked for
    it."""
    try:
        made: Any = LiveModule(value) if isinstance(value, _MODULE) else LiveOptimizer(value, state)
        return made if made.is_state(state) else None
    except (_Other, AttributeError, KeyError, TypeError):
        return None


class _Other(Exception):
    """Nothing that can be taken from where it is."""


class LiveModule:
    """The tensors of a module in the order of its state dict."""

    def __init__(self, module: Any) -> None:
        self._object = weakref.ref(module)
        modules, self._children = _all_below(module)
        if not all(map(_is_ordinary, modules)):
            raise _Other
        self._types = list(map(type, modules))
        dicts, self._lengths, values = _own(modules)
        self._names, self._kinds = list(chain.from_iterable(dicts)), list(map(type, values))
        self._hidden = [(i, set(m._non_persistent_buffers_set)) for i, m in enumerate(modules) if m._buffers]
        self._walk = _walk(modules)
        self.names, self._places = _order(self._walk, modules)

    def is_of(self, value: Any) -> bool:
        return self._object() is value

    def is_state(self, state: Any) -> bool:
        """Whether these are the tensors of a state dict that has just been made."""
        tensors = self.tensors()
        return (
            isinstance(state, dict)
            and tensors is not None
            and len(tensors) > 0
            and list(state) == self.names
            and all(identity(a) == identity(b) for a, b in zip(tensors, state.values()))
        )

    def tensors(self) -> Optional[list[Any]]:
        """Of now; None if the module is not built as it was."""
        module = self._object()
        if module is None or not _is_ordinary(module):
            return None
        modules, children = _all_below(module, self._children)
        if children != self._children or list(map(type, modules)) != self._types or any(map(_HOOKS, modules)):
            return None
        self._run_pre_hooks(modules)
        dicts, lengths, values = _own(modules)
        if lengths != self._lengths or list(chain.from_iterable(dicts)) != self._names:
            return None
        if list(map(type, values)) != self._kinds:
            return None
        if any(modules[i]._non_persistent_buffers_set != hidden for i, hidden in self._hidden):
            return None
        return list(map(values.__getitem__, self._places))

    def fix(self, fixed: Fixed, name: str) -> None:
        """Notes what stays of it (see _promise); the next leaves are its tensors."""
        module = self._object()
        modules, _ = _all_below(module)
        places = [(d, k) for d in chain.from_iterable(map(_OWN, modules)) for k in d]
        for at in self._places:
            fixed.leaf(*places[at])
        for at, prefix in self._walk:
            _fix_module(modules[at], fixed, f"{name}.{prefix}")
        hooked = [(modules[at], prefix) for at, prefix in self._walk if _PRE_HOOKS(modules[at])]

        def check() -> Optional[str]:
            if not _is_ordinary(module):
                return f'"{name}" has a hook, or a state_dict() of its own'
            for hooked_module, prefix in hooked:
                for hook in hooked_module._state_dict_pre_hooks.values():
                    hook(hooked_module, prefix, False)
            return None

        fixed.checks.append(check)

    def _run_pre_hooks(self, modules: list[Any]) -> None:
        """What state_dict() does first: FSDP2 has its parameters sharded by that."""
        if any(map(_PRE_HOOKS, modules)):
            for at, prefix in self._walk:
                for hook in modules[at]._state_dict_pre_hooks.values():
                    hook(modules[at], prefix, False)


def _is_ordinary(module: Any) -> bool:
    kind = type(module)
    return (
        all(getattr(kind, name) is getattr(_MODULE, name) for name in _OWN_WAYS)
        and not any(name in module.__dict__ for name in _OWN_WAYS)
        and not module._state_dict_hooks
        and all(type(d) in _DICTS for d in (module._parameters, module._buffers, module._modules))
    )


def _fix_module(module: Any, fixed: Fixed, prefix: str) -> None:
    """Its children, and how many entries it has of each kind."""
    for name, child in module._modules.items():
        fixed.link(module._modules, name, child, prefix + name)
    for d in (module._parameters, module._buffers):
        for name, value in d.items():
            if value is None:
                fixed.link(d, name, None, prefix + name)
        fixed.size(d, prefix[:-1])
    for what in ("_modules", "_non_persistent_buffers_set", "_state_dict_hooks", "_state_dict_pre_hooks"):
        fixed.size(getattr(module, what), f"{prefix}{what}")


def _all_below(module: Any, before: Optional[list[Any]] = None) -> tuple[list[Any], list[Any]]:
    """Every module as often as it is reached, level by level, and what tells whether they hang together as
    before: the names of children and their numbers. Ends where it is not as before: a module may be in
    itself by now."""
    modules, level = [module], [module]
    names: list[Any] = []
    while level:
        dicts = list(map(_CHILDREN, level))
        names.append(list(chain.from_iterable(dicts)))
        names.append(list(map(len, dicts)))
        below = list(_values(dicts))
        level = [m for m in below if m is not None]
        if len(level) != len(below):
            names.append([m is None for m in below])
        if before is not None and names != before[: len(names)]:
            break
        modules += level
    return modules, names


def _values(dicts: list[Any]) -> Iterable[Any]:
    """Of all of them, one after the other."""
    plain = set(map(type, dicts)) <= {dict}
    return chain.from_iterable(map(dict.values if plain else operator.methodcaller("values"), dicts))


def _own(modules: list[Any]) -> tuple[list[Any], list[int], list[Any]]:
    """The dicts of parameters and buffers that have any, lengths of all, and the values."""
    dicts = list(chain.from_iterable(map(_OWN, modules)))
    full = list(filter(None, dicts))
    return full, list(map(len, dicts)), list(_values(full))


def _walk(modules: list[Any]) -> list[tuple[int, str]]:
    """Numbers of modules that came level by level, as often and in the order in which state_dict() comes by
    them, each with its prefix. By their numbers, since a module in two places may be two some day."""
    below: list[list[tuple[int, str]]] = []
    following = 1
    for m in modules:
        names = [name for name, child in m._modules.items() if child is not None]
        below.append([(following + i, name) for i, name in enumerate(names)])
        following += len(names)
    walked, left = [], [(0, "")]
    while left:
        at, prefix = left.pop()
        walked.append((at, prefix))
        left.extend((child, f"{prefix}{name}.") for child, name in reversed(below[at]))
    return walked


def _order(walk: list[tuple[int, str]], modules: list[Any]) -> tuple[list[str], list[int]]:
    """Names of the state dict in its order, and for each the place of its tensor among the values of _own()."""
    sizes = (len(m._parameters) + len(m._buffers) for m in modules)
    begins = list(accumulate(sizes, initial=0))
    names, places = [], []
    for number, prefix in walk:
        m, at = modules[number], begins[number]
        hidden = m._non_persistent_buffers_set
        for name, value in chain(m._parameters.items(), m._buffers.items()):
            if value is not None and (name in m._parameters or name not in hidden):
                names.append(prefix + name)
                places.append(at)
            at += 1
    return names, places


class LiveOptimizer:
    """The tensors of an optimizer's state in the order of its state dict, and its groups of now.

    state: its state dict, just made."""

    def __init__(self, optimizer: Any, state: Any) -> None:
        self._object = weakref.ref(optimizer)
        groups = optimizer.param_groups
        if not self._is_ordinary(optimizer) or list(state) != ["state", "param_groups"]:
            raise _Other
        params = list(chain.from_iterable(g["params"] for g in groups))
        self._sizes = [len(g["params"]) for g in groups]
        if len(set(map(id, params))) != len(params):
            raise _Other
        self._keys = self._places(optimizer, params)
        slots = list(optimizer.state.values())
        values = list(_values(slots))
        self._lengths, self._names = list(map(len, slots)), list(chain.from_iterable(slots))
        self._kinds = list(map(type, values))
        self._plain = [i for i, v in enumerate(values) if type(v) in _FIXED]
        self._plain_values = [values[i] for i in self._plain]
        if not all(k in _FIXED or issubclass(k, torch.Tensor) for k in set(self._kinds)):
            raise _Other
        if not values or not all(type(s) is dict for s in slots) or self._keys != list(state["state"]):
            raise _Other
        self._params = [Known(g["params"]) for g in state["param_groups"]]

    @staticmethod
    def _is_ordinary(optimizer: Any) -> bool:
        return (
            type(optimizer).state_dict is _OPTIMIZER.state_dict
            and "state_dict" not in optimizer.__dict__
            and not getattr(optimizer, "_optimizer_state_dict_pre_hooks", None)
            and not getattr(optimizer, "_optimizer_state_dict_post_hooks", None)
        )

    @staticmethod
    def _places(optimizer: Any, params: list[Any]) -> list[Any]:
        """Of each parameter that has state its number; None for what is no parameter."""
        number = dict(zip(map(id, params), range(len(params))))
        return list(map(number.get, map(id, optimizer.state)))

    def is_of(self, value: Any) -> bool:
        return self._object() is value

    def is_state(self, state: Any) -> bool:
        """Whether these are the tensors of a state dict that has just been made."""
        found = self.tensors()
        theirs = [
            v for slots in state["state"].values() for v in slots.values() if isinstance(v, torch.Tensor)
        ]
        return found is not None and len(found) == len(theirs) and all(map(operator.is_, found, theirs))

    def tensors(self) -> Optional[list[Any]]:
        """Of now; None if the optimizer is not built as it was."""
        optimizer = self._object()
        if optimizer is None or not self._is_ordinary(optimizer):
            return None
        if [len(g["params"]) for g in optimizer.param_groups] != self._sizes:
            return None
        params = list(chain.from_iterable(g["params"] for g in optimizer.param_groups))
        if self._places(optimizer, params) != self._keys:
            return None
        slots = list(optimizer.state.values())
        if list(map(len, slots)) != self._lengths or list(chain.from_iterable(slots)) != self._names:
            return None
        values = list(_values(slots))
        if list(map(type, values)) != self._kinds or [values[i] for i in self._plain] != self._plain_values:
            return None
        if not self._plain:
            return values
        plain = set(self._plain)
        return [v for i, v in enumerate(values) if i not in plain]

    def fix(self, fixed: Fixed, name: str) -> None:
        """Notes what stays of it (see _promise); the next leaves are the tensors of its state."""
        optimizer = self._object()
        state, groups = optimizer.state, optimizer.param_groups
        for number, (param, slots) in zip(self._keys, state.items()):
            of = f"{name}.state.{number}"
            fixed.link(state, param, slots, of)
            fixed.size(slots, of)
            for key, value in slots.items():
                if isinstance(value, torch.Tensor):
                    fixed.leaf(slots, key)
                else:
                    fixed.link(slots, key, value, f"{of}.{key}")
        lists = [g["params"] for g in groups]
        for i, params in enumerate(lists):
            for at, param in enumerate(params):
                fixed.link(params, at, param, f"{name}.param_groups.{i}.params.{at}")
        known, count = list(groups), len(state)

        def check() -> Optional[str]:
            if not self._is_ordinary(optimizer):
                return f'"{name}" has a hook, or a state_dict() of its own'
            if optimizer.state is not state or len(state) != count:
                return f'"{name}.state" is another, or has {len(optimizer.state)} entries for {count}'
            if optimizer.param_groups is not groups or len(groups) != len(known):
                return f'"{name}.param_groups" is another list, or has a group more or less'
            for i, (group, params, size) in enumerate(zip(groups, lists, self._sizes)):
                if group is not known[i] or group["params"] is not params or len(params) != size:
                    return f'"{name}.param_groups.{i}" has other parameters, or is another group'
            return None

        fixed.checks.append(check)

    def groups(self) -> list[Any]:
        """Of now, as in the state dict."""
        return [
            {**{k: v for k, v in group.items() if k != "params"}, "params": params}
            for group, params in zip(self._object().param_groups, self._params)
        ]
