# SPDX-License-Identifier: Apache-2.0
"""Rows: how a figure is written down, the table of them, plots as text, and pages made from them."""
import json
import pathlib

import machine
import stats

KEYS = ("name", "unit", "min", "median", "max", "p99", "limit", "peers")
BAR = 40


class Report:
    """Collects rows. A figure that could not be measured is a row too, and says why."""

    def __init__(self, described, quick, say=print):
        self.machine, self.quick, self.rows, self.say = described, quick, [], say

    def add(self, name, unit, values, *, limit=None, limit_name=None, peers=None, target=None, note=None, group=None, n=None):
        """target is ("<=", 1.05) or (">=", 0.85), or None for what is only reported. n: of how many values these are minimum, median and maximum."""
        row = {"name": name, "unit": unit, **stats.summary(values), "limit": limit, "limit_name": limit_name, "peers": peers or {},
               "interval": stats.interval(values), "target": list(target) if target else None, "note": note, "group": group}
        row["n"] = n or row["n"]
        row["met"] = None if not target else (row["median"] <= target[1] if target[0] == "<=" else row["median"] >= target[1])
        self.rows.append(row)
        self.say(line_of(row))
        return row

    def missing(self, name, unit, why, *, target=None, group=None):
        self.rows.append({"name": name, "unit": unit, "min": None, "median": None, "max": None, "p99": None, "n": 0, "limit": None,
                          "limit_name": None, "peers": {}, "interval": None, "target": list(target) if target else None, "met": None,
                          "note": f"not measured: {why}", "group": group})
        self.say(line_of(self.rows[-1]))

    def has(self, name):
        return any(r["name"] == name for r in self.rows)

    def median(self, name):
        return next((r["median"] for r in self.rows if r["name"] == name), None)

    def json(self, extra=None):
        return {"machine": self.machine, "quick": self.quick, **(extra or {}), "rows": self.rows}


def check(report):
    """What a reader of the JSON may rely on. Returns what is wrong, or None."""
    if not isinstance(report.get("machine"), dict) or not isinstance(report.get("rows"), list):
        return "no machine or no rows"
    names = [r.get("name") for r in report["rows"]]
    if len(names) != len(set(names)):
        return "a name comes twice"
    for r in report["rows"]:
        lacking = [k for k in KEYS if k not in r]
        if lacking:
            return f"{r.get('name')}: no {lacking[0]}"
        if r["median"] is None and not str(r.get("note", "")).startswith("not measured: "):
            return f"{r['name']}: neither a figure nor why there is none"
        if r["median"] is not None and not r["min"] <= r["median"] <= r["max"]:
            return f"{r['name']}: the median is not between the ends"
    return None


# ---- text ----

def number(value, unit):
    if value is None:
        return "-"
    if unit == "GB/s":
        return f"{value:.2f}"
    if unit == "s":
        return f"{value * 1e3:.1f} ms" if value < 10 else f"{value:.1f} s"
    if unit == "bytes":
        return f"{value / 2**20:.0f} MiB"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"


def peers_text(row):
    return ", ".join(f"{k} {number(v, row['unit'])}" for k, v in row["peers"].items())


def target_text(row):
    if not row["target"]:
        return ""
    met = {True: "met", False: "MISSED", None: "?"}[row["met"]]
    return f"{row['target'][0]} {row['target'][1]:g} {met}"


def line_of(row):
    u = row["unit"]
    if row["median"] is None:
        return f"  {row['name']:<34} {row['note']}"
    ends = f"{number(row['min'], u)} .. {number(row['max'], u)}"
    p99 = f" p99 {number(row['p99'], u)}" if row["p99"] is not None else ""
    limit = f"  {row['limit_name'] or 'limit'} {number(row['limit'], u)}" if row["limit"] is not None else ""
    spread = f" 95% {number(row['interval'][0], u)}..{number(row['interval'][1], u)}" if row["interval"] and row["target"] else ""
    return (f"  {row['name']:<34} {number(row['median'], u):>10} {u if u != 's' else '':<5} [{ends}]{p99} n={row['n']}{spread}  "
            f"{target_text(row)}{limit}  {peers_text(row)}").rstrip() + (f"  ({row['note']})" if row["note"] else "")


def bars(rows, title, say):
    """Medians as bars on one scale, with limits and peers as bars of their own."""
    entries = []
    for r in rows:
        if r["median"] is None:
            continue
        entries.append((r["name"], r["median"]))
        entries += [(f"  {k}", v) for k, v in {**({r["limit_name"] or "limit": r["limit"]} if r["limit"] else {}), **r["peers"]}.items()
                    if isinstance(v, (int, float))]
    if not entries:
        return
    most = max(v for _, v in entries) or 1
    say(f"\n{title}")
    for name, value in entries:
        say(f"  {name:<40} {'#' * max(1, round(value / most * BAR)):<{BAR}} {number(value, rows[0]['unit'])}")


def grouped(rows):
    groups = {}
    for r in rows:
        groups.setdefault(r.get("group") or "other", []).append(r)
    return groups


def plots(rows, say):
    for group, members in grouped(rows).items():
        for unit in ("GB/s", "s"):
            chosen = [r for r in members if r["unit"] == unit]
            bars(chosen, f"{group}, {unit}", say)


# ---- markdown ----

def render(report):
    """The tables of docs/performance.md."""
    m = report["machine"]
    out = [f"{machine.text(m)}.{' A quick run: small states and few pairs.' if report.get('quick') else ''}", ""]
    if report.get("state"):
        s = report["state"]
        out += [f"State: {s['model']}, {s['parameters'] / 1e6:.1f} M parameters, {s['steps']} steps of training, loss {s['loss_first']:.2f} to "
                f"{s['loss_last']:.2f}.", ""]
    for group, rows in grouped(report["rows"]).items():
        out += [f"### {group[0].upper() + group[1:]}", "", "| | median | min | max | p99 | 95% of the median | n | target | limit | peers |",
                "|---|---|---|---|---|---|---|---|---|---|"]
        for r in rows:
            u = r["unit"]
            name = f"`{r['name']}`" + (f", {u}" if u not in ("s", "ratio", "bytes") else "")
            if r["median"] is None:
                out.append(f"| {name} | {r['note']} | | | | | | {target_text(r)} | | |")
                continue
            spread = f"{number(r['interval'][0], u)} to {number(r['interval'][1], u)}" if r["interval"] else ""
            limit = f"{r['limit_name'] or ''} {number(r['limit'], u)}" if r["limit"] is not None else ""
            out.append(f"| {name} | **{number(r['median'], u)}** | {number(r['min'], u)} | {number(r['max'], u)} | {number(r['p99'], u)} | "
                       f"{spread} | {r['n']} | {target_text(r)} | {limit} | {peers_text(r)} |")
        notes = [f"- `{r['name']}`: {r['note']}" for r in rows if r["note"] and r["median"] is not None]
        out += ["", *notes, *([""] if notes else [])]
    return "\n".join(out)


def into_page(page, report, mark="figures"):
    """Puts the tables between the page's marks."""
    begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    text = pathlib.Path(page).read_text()
    if begin not in text or end not in text:
        raise ValueError(f"{page} has no place for figures: {begin} and {end}")
    head, tail = text.split(begin)[0], text.split(end)[1]
    pathlib.Path(page).write_text(f"{head}{begin}\n{render(report)}\n{end}{tail}")


def load(path):
    return json.loads(pathlib.Path(path).read_text())
