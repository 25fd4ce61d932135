# SPDX-License-Identifier: Apache-2.0
"""States of the random number generators of this process, as tensors and plain values: nothing that needs
pickle."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch


def capture() -> dict[str, Any]:
    """The states of Python's, numpy's (if it was imported) and torch's generators, of all devices in use.

    The tensors are new: the caller may change the generators at once.
    """
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
        "torch": torch.get_rng_state(),
    }
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        kind, keys, position, has_gauss, cached = numpy.random.get_state()
        state["numpy"] = {
            "kind": str(kind),
            "keys": torch.from_numpy(keys.astype("int64")),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        }
    device = _device_kind()
    if device is not None:
        state[device] = list(torch.get_device_module(device).get_rng_state_all())
    return state


def apply(state: dict[str, Any]) -> None:
    """Sets the generators to what capture() gave. Devices that are not here are left out."""
    random.setstate(python_state(state))
    torch.set_rng_state(state["torch"].cpu())
    if "numpy" in state and "numpy" in sys.modules:
        sys.modules["numpy"].random.set_state(numpy_state(state))
    device = _device_kind()
    if device is not None and device in state:
        torch.get_device_module(device).set_rng_state_all([each.cpu() for each in state[device]])


def python_state(state: dict[str, Any]) -> tuple[Any, ...]:
    """What random.setstate() takes."""
    python = state["python"]
    return python["version"], tuple(python["words"].tolist()), python["gauss"]


def numpy_state(state: dict[str, Any]) -> tuple[Any, ...]:
    """What numpy.random.set_state() takes."""
    numpy = state["numpy"]
    keys = numpy["keys"].numpy().astype("uint32")
    return numpy["kind"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"]


def _device_kind() -> Any:
    """ "cuda", "xpu", ...: the accelerator that is here and keeps generator states, or None."""
    accelerator = getattr(torch, "accelerator", None)
    current = (
        accelerator.current_accelerator() if accelerator is not None and accelerator.is_available() else None
    )
    if current is None:
        return "cuda" if torch.cuda.is_available() else None
    return current.type if hasattr(torch.get_device_module(current.type), "get_rng_state_all") else None
