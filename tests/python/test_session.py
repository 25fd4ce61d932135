# SPDX-License-Identifier: Apache-2.0
"""The binding itself: tables, saves, restores, errors. No torch."""
import ctypes
import os
import subprocess
import sys
from array import array

import pytest

import cairn


def open_session(job, **kwargs):
    return cairn.Session(job, arena_bytes=8 << 20, start_id="start", **kwargs)


def address(a):
    return a.buffer_info()[0]


def test_saves_and_restores(cluster, job):
    data, table = array("d", range(1000)), cairn.Table()
    table.add("a", "F64", (10, 100), address(data), keep=data)
    table.add("every second", "F64", (500,), address(data), strides=(16,), keep=data)
    table.add("empty", "F32", (0, 3), 0)
    with open_session(job) as s:
        save = s.save(7, table)
        assert save.info()["bytes"] == 8000 + 4000
        save.wait("committed", 30)
        assert s.latest() == 7
        back, half = array("d", bytes(8 * 100)), array("d", bytes(4000))
        with s.restore() as r:
            assert (r.step, r.world_size) == (7, 1)
            assert [x.name for x in r.slices()] == ["a", "every second", "empty"]
            assert r.find("a") == ("F64", (10, 100)) and r.find("b") is None
            r.add("a", "F64", (10, 100), address(back), offset=(3, 0), length=(1, 100))
            r.add("every second", "F64", (500,), address(half))
            r.run(30)
    assert list(back) == list(range(300, 400))
    assert list(half) == list(range(0, 1000, 2))


def test_set_addresses_changes_what_is_saved(cluster, job):
    one, two, table = array("d", [1.0] * 64), array("d", [2.0] * 64), cairn.Table()
    table.add("a", "F64", (64,), address(one))
    with open_session(job) as s:
        s.save(1, table).wait(timeout=30)
        table.set_addresses([address(two)], keep=two)
        s.save(2, table).wait(timeout=30)
        with s.restore(2) as r:
            r.add("a", "F64", (64,), address(one))
            r.run(30)
    assert list(one) == [2.0] * 64


def test_latest_finite_passes_over_nan(cluster, job):
    data, table = array("d", [1.0] * 64), cairn.Table()
    table.add("a", "F64", (64,), address(data), common=True)
    with open_session(job) as s:
        with pytest.raises(cairn.NotFoundError, match="no committed checkpoint"):
            s.restore("latest-finite")
        s.save(1, table).wait(timeout=30)
        data[63] = float("nan")
        s.save(2, table).wait(timeout=30)
        with s.restore("latest-finite") as r:
            assert r.step == 1
        with s.restore("latest") as r:
            assert r.step == 2
        (tensor,) = s.query("show", job, 2)["tensors"]
        assert (tensor["slices"][0]["nan"], tensor["slices"][0]["common"]) == (1, True)
        with pytest.raises(cairn.InvalidError, match="newest"):
            s.restore("newest")


def test_errors_are_told_apart(cluster, job):
    data, table = array("d", [0.0] * 8), cairn.Table()
    table.add("a", "F64", (8,), address(data))
    with pytest.raises(cairn.InvalidError, match="dtype"):
        table.add("b", "float64", (8,), address(data))
    with pytest.raises(cairn.InvalidError, match="2 numbers"):
        table.add("b", "F64", (8, 1), address(data), offset=(0,))
    with open_session(job) as s:
        assert s.latest() is None
        with pytest.raises(cairn.NotFoundError):
            s.restore(99)
        s.save(1, table).wait(timeout=30)
        with pytest.raises(cairn.ExistsError):
            s.save(1, table)
        with pytest.raises(cairn.ExistsError):
            open_session(job)  # two processes, or sessions, with one rank
        with pytest.raises(cairn.NotFoundError, match="scratch"):
            s.restore()  # what this start resumes from was asked for before there was anything
        with s.restore(1) as r:
            r.add("a", "F32", (8,), address(data))
            with pytest.raises(cairn.InvalidError, match="a"):
                r.run(30)
        big = cairn.Table()
        big.add("big", "U8", (64 << 20,), address(data))
        with pytest.raises(cairn.TooLargeError):
            s.save(2, big)
    with pytest.raises(cairn.InvalidError, match="closed"):
        s.latest()
    with pytest.raises(ConnectionError, match="/nowhere"):
        cairn.Session("x", observer=True, socket="/nowhere/sock", timeout=1)


def test_structures_are_those_of_the_header():
    """libcairn refuses a size it does not know; this says which one is wrong."""
    from cairn import _lib
    assert ctypes.sizeof(_lib.CTensor) == 72 and ctypes.sizeof(_lib.SessionOptions) == 80


def test_session_and_save_that_are_garbage_together(cluster, job):
    """In a cycle Python finalizes in any order: a session that was closed before its save's handle was freed crashed here."""
    code = """
import ctypes, gc, sys
import cairn

class Box:
    pass

data = bytearray(1000)
for i in range(20):
    box = Box()
    box.session = cairn.Session(f"{sys.argv[1]}-{i}", arena_bytes=1 << 20)
    table = cairn.Table()
    table.add("x", "BYTES", (1000,), ctypes.addressof(ctypes.c_char.from_buffer(data)), keep=data)
    box.save = box.session.save(1, table)
    box.save.cycle = box.session.cycle = box
    del box
    gc.collect()
"""
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    done = subprocess.run([sys.executable, "-c", code, job], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"ended with {done.returncode}\n{done.stderr}"
