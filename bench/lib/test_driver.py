# SPDX-License-Identifier: Apache-2.0
"""The benchmark driver's rows, statistics and pages, on figures that are made up: what a reader of the JSON relies on."""
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import budget  # noqa: E402
import report  # noqa: E402
import stats  # noqa: E402

MACHINE = {"processors": 2, "processor": "x", "vectors": [], "memory_gib": 1, "kernel": "6", "filesystem": "ext4", "commit": "abc",
           "load_before": 0.0}


def made_up():
    r = report.Report(MACHINE, True, lambda _: None)
    r.add("stall_over_copy", "ratio", [1.0, 1.1, 1.02], target=("<=", 1.05), group="g")
    r.add("restore_over_disk", "ratio", [0.5, 0.6, 0.7], target=(">=", 0.85), limit=1.0, peers={"cp": 0.4}, group="g")
    r.missing("durable_raw_over_limit", "ratio", "no probe", target=(">=", 0.85), group="h")
    return r


class Statistics(unittest.TestCase):
    def test_a_percentile_is_a_value_that_was_measured(self):
        self.assertEqual(stats.quantile(range(1, 101), 0.99), 99)
        self.assertEqual(stats.quantile([5], 0.99), 5)

    def test_no_p99_of_too_few(self):
        self.assertIsNone(stats.summary([1.0] * 99)["p99"])
        self.assertEqual(stats.summary([1.0] * 100)["p99"], 1.0)

    def test_the_interval_of_signs(self):
        self.assertIsNone(stats.interval([1, 2, 3, 4, 5]))  # 2 / 2^5 is more than 5%
        self.assertEqual(stats.interval([1, 2, 3, 4, 5, 6]), [1, 6])
        self.assertEqual(stats.interval(list(range(1, 16))), [4, 12])  # as in tables of the sign test

    def test_pairs_are_compared_as_pairs(self):
        self.assertEqual(stats.ratios([1, 4], [2, 2]), [0.5, 2])

    def test_a_line(self):
        fixed, slope = stats.line([1, 2, 3], [12, 14, 16])
        self.assertAlmostEqual(fixed, 10)
        self.assertAlmostEqual(slope, 2)

    def test_a_large_value_does_not_decide_the_fixed_part(self):
        fixed, _ = stats.line([1, 2, 4, 1000], [1.1, 2.1, 4.1, 2000])
        self.assertLess(abs(fixed), 1)


class Time(unittest.TestCase):
    """A clock that a turn moves on by ten seconds."""

    def setUp(self):
        self.now = 0.0
        self.budget = budget.Budget(1000, lambda: self.now)

    def count(self, n, least, bare):
        turns = 0
        for _ in self.budget.turns(n, least, bare):
            turns, self.now = turns + 1, self.now + 10
        return turns

    def test_what_there_is_time_for_is_done(self):
        self.budget.family("growth", ["growth"], 1)
        self.assertEqual(self.count(20, 15, 6), 20)

    def test_a_loop_ends_with_its_share_but_not_below_what_is_judged(self):
        self.budget.family("growth", ["growth"], 20)  # 50 seconds each
        self.assertEqual(self.count(100, 6, 3), 6)
        self.assertEqual(self.count(100, 2, 2), 5)

    def test_a_loop_may_weigh_more(self):
        self.budget.family("growth", ["growth"], 10)
        self.assertEqual(sum(1 for _ in self.turning(self.budget.turns(100, 2, 2, 5))), 50)
        self.assertEqual(self.count(100, 2, 2), 10)

    def turning(self, turns):
        for i in turns:
            self.now += 10
            yield i

    def test_behind_the_end_there_is_the_bare_number(self):
        self.budget.family("growth", ["growth"], 1)
        self.now = 2000
        self.assertEqual(self.count(100, 15, 6), 6)

    def test_families_share_by_weight_and_get_what_is_left_over(self):
        self.budget.family("floors", ["floors", "stall"], 1)
        first = self.budget.left_s()
        self.assertAlmostEqual(first, 1000 * budget.WEIGHTS["floors"] / (budget.WEIGHTS["floors"] + budget.WEIGHTS["stall"]))
        self.budget.family("stall", ["stall"], 1)
        self.assertAlmostEqual(self.budget.left_s(), 1000)


class Rows(unittest.TestCase):
    def test_the_schema_holds(self):
        self.assertIsNone(report.check(json.loads(json.dumps(made_up().json()))))

    def test_a_target_is_judged_in_its_direction(self):
        met = {r["name"]: r["met"] for r in made_up().rows}
        self.assertEqual(met, {"stall_over_copy": True, "restore_over_disk": False, "durable_raw_over_limit": None})

    def test_what_is_missing_says_why(self):
        r = made_up().json()
        r["rows"][2]["note"] = None
        self.assertIn("why", report.check(r))

    def test_a_name_twice_is_wrong(self):
        r = made_up().json()
        r["rows"].append(r["rows"][0])
        self.assertIn("twice", report.check(r))

    def test_a_page_takes_the_tables(self):
        with tempfile.TemporaryDirectory() as d:
            page, out = pathlib.Path(d) / "page.md", pathlib.Path(d) / "r.json"
            page.write_text("before\n<!-- figures -->\nold\n<!-- end of figures -->\nafter\n")
            out.write_text(json.dumps(made_up().json()))
            run = pathlib.Path(__file__).resolve().parent.parent / "run"
            subprocess.run([sys.executable, str(run), "--render", str(out), "--into", str(page)], check=True, timeout=30)
            text = page.read_text()
            self.assertIn("`stall_over_copy`", text)
            self.assertIn("not measured: no probe", text)
            self.assertNotIn("old", text)
            self.assertTrue(text.startswith("before") and text.endswith("after\n"))


if __name__ == "__main__":
    unittest.main()
