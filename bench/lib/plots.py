# SPDX-License-Identifier: Apache-2.0
"""Runs in the benchmark's Python environment: one PNG for each group and unit of a JSON report.

    plots.py REPORT.json DIRECTORY"""
import pathlib
import re
import sys

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import report  # noqa: E402

OURS, LIMIT, PEER = "#1f5f8b", "#9a9a9a", "#d08a3c"
LABELS = {"s": "milliseconds", "GB/s": "GB/s", "ratio": "ratio", "CPU s/GB": "CPU seconds per GB"}


def entries(rows):
    """(label, value, low, high, colour): the figure with its range, its limit, its peers."""
    for r in rows:
        yield r["name"], r["median"], r["min"], r["max"], OURS
        if r["limit"] is not None:
            yield f"{r['limit_name'] or 'limit'} of {r['name']}", r["limit"], None, None, LIMIT
        for name, value in r["peers"].items():
            yield name, value, None, None, PEER


def draw(path, title, unit, rows):
    scale = 1e3 if unit == "s" else 1
    bars = [e for e in entries(rows) if e[1] is not None]
    figure, axes = pyplot.subplots(figsize=(8, 0.9 + 0.26 * len(bars)), dpi=90)
    for i, (label, value, low, high, colour) in enumerate(bars):
        ends = None if low is None else [[max(0, value - low) * scale], [max(0, high - value) * scale]]
        axes.barh(i, value * scale, color=colour, xerr=ends, error_kw={"elinewidth": 1, "capsize": 2})
    for target in sorted({r["target"][1] for r in rows if unit == "ratio" and r["target"]}):
        axes.axvline(target, color="#b03030", linewidth=0.6, linestyle=":")
    axes.set_yticks(range(len(bars)), [b[0] for b in bars], fontsize=7)
    axes.invert_yaxis()
    values = [b[1] for b in bars if b[1] > 0]
    if values and max(values) > 50 * min(values):
        axes.set_xscale("log")
    axes.set_xlabel(LABELS.get(unit, unit), fontsize=8)
    axes.set_title(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def main():
    data, where = report.load(sys.argv[1]), pathlib.Path(sys.argv[2])
    where.mkdir(parents=True, exist_ok=True)
    for group, rows in report.grouped([r for r in data["rows"] if r["median"] is not None]).items():
        for unit in LABELS:
            chosen = [r for r in rows if r["unit"] == unit]
            if chosen:
                name = re.sub(r"[^a-z0-9]+", "-", f"{group}-{unit}".lower()).strip("-")
                draw(where / f"{name}.png", f"{group}, commit {data['machine']['commit']}", unit, chosen)


main()
