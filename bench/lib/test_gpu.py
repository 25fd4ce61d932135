# SPDX-License-Identifier: Apache-2.0
"""bench/gpu's own logic on findings that are made up: no torch, no daemon, no device."""
import importlib.machinery
import importlib.util
import pathlib
import sys
import types
import unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import report  # noqa: E402
from test_driver import MACHINE  # noqa: E402

FOUND = {
    "pin_s": [1.0], "pin_bytes": 8 << 30, "copy_held_s": [0.001, 0.003], "copy_s": [0.2, 0.25], "copy_bytes": 8 << 30, "d2h_limit_s": [0.19, 0.2],
    "load_s": [0.2], "h2d_limit_s": [0.19], "load_bytes": 8 << 30, "summed_held_s": [0.001], "summed_s": [0.2], "summed_bytes": 8 << 30,
    "unchanged_s": [0.002], "unchanged_bytes": 8 << 30, "unchanged_copied_bytes": 0, "half_changed_bytes": 100, "half_copied_bytes": 101,
    "half_skipped_bytes": 100, "many_held_s": [0.001], "many_s": [0.05], "many_bytes": 1 << 30,
}


def script():
    loader = importlib.machinery.SourceFileLoader("gpu", str(HERE.parent / "gpu"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("gpu", loader))
    loader.exec_module(module)
    return module


class Rows(unittest.TestCase):
    def setUp(self):
        self.gpu = script()
        self.run_ = types.SimpleNamespace(rows=report.Report(MACHINE, False, lambda _: None), values={}, plugin_rows=None)

    def judged(self):
        return {r["name"]: r["met"] for r in self.run_.rows.rows if r["target"]}

    def test_the_plugin_is_judged_by_the_limit_beside_it_and_by_its_longest_call(self):
        self.run_.rows.add("device_read", "GB/s", [4300.0])
        self.gpu.Run.plugin_rows(self.run_, FOUND)
        self.assertEqual(self.judged(), {"plugin_copy_over_limit": False, "plugin_held": False, "plugin_held_many": True, "plugin_load_over_limit": True,
                                         "unchanged_over_device_read": True, "half_changed_copied": True})

    def test_without_kernels_there_is_less_and_no_error(self):
        self.gpu.Run.plugin_rows(self.run_, {k: v for k, v in FOUND.items() if not k.startswith(("unchanged", "half"))})
        self.assertNotIn("unchanged", [r["name"] for r in self.run_.rows.rows])
        self.assertIn("plugin_load_over_limit", self.judged())

    def test_packing_is_no_gain_where_it_is_slower_than_the_bus(self):
        self.run_.rows.add("pinned_to_host", "GB/s", [50.0])
        self.gpu.Run.kernel_rows(self.run_, {"plain_bytes": 10**9, "packed_bytes": 5 * 10**8, "sums_s": [0.001], "pack_s": [0.005, 0.02, 0.04], "unpack_s": [0.01]})
        self.assertEqual([round(x, 2) for x in (self.run_.rows.rows[-1]["min"], self.run_.rows.rows[-1]["median"], self.run_.rows.rows[-1]["max"])], [0.5, 1.0, 2.0])

    def test_what_broke_off_is_judged_as_far_as_it_came(self):
        self.gpu.Run.plugin_rows(self.run_, {})
        self.assertEqual(self.run_.rows.rows, [])

    def test_compared_by_size_and_in_training(self):
        self.run_.values = {"blocked_4gib": 0.001, "blocked_dcp_pinned_4gib": 0.1, "blocked_dcp_async_4gib": 0.01, "blocked_16gib": 0.1, "step_alone": 0.1,
                            "blocked_training": 0.0, "blocked_training_dcp": 0.2}
        self.gpu.Run.compared(self.run_)
        self.assertEqual({r["name"]: r["median"] for r in self.run_.rows.rows}, {"blocked_4gib_over_dcp": 0.01, "blocked_training_over_dcp": 0.0})


class Plan(unittest.TestCase):
    def test_restores_follow_what_was_saved_and_only_chooses(self):
        plan = script().plan
        everything = [name for p in plan(types.SimpleNamespace(cpu=False, quick=False, only=None)) for name, _, _ in p]
        self.assertEqual(everything[:3], ["limits", "conformance", "plugin"])  # first what is short
        for i, name in enumerate(everything):
            if name == "restore":
                self.assertEqual(everything[i - 1], "cairn")
        chosen = plan(types.SimpleNamespace(cpu=False, quick=True, only="many,cairn"))
        self.assertEqual([[name for name, _, _ in p] for p in chosen], [["cairn"], ["many"]])


if __name__ == "__main__":
    unittest.main()
