#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The manual and the programs say the same: every command, option and configuration key that a program prints is in its page, and
every one in the page is known to the program; defaults are equal; the example configuration is what --options prints; the JSON page
names every key that the daemon writes.

Catches: an option that was added or renamed and not documented, a page that promises what is gone."""
import argparse
import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PAGES = ROOT / "docs" / "man"


def output(*args):
    return subprocess.run([str(a) for a in args], capture_output=True, text=True, timeout=30, check=True).stdout


def options(text):
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))


def compare(what, program, page):
    assert program, f"{what}: the program prints none"
    assert program == page, f"{what}: undocumented {sorted(program - page)}, unknown to the program {sorted(page - program)}"


def check_tool(tool):
    page = (PAGES / "cairn.1.scd").read_text()
    usage = output(tool, "--help")
    commands = set(re.findall(r"^  ([a-z]+) ", usage, re.M))
    compare("commands of cairn", commands, set(re.findall(r"^\*([a-z]+)\*", page.split("# COMMANDS")[1].split("# OPTIONS")[0], re.M)))
    helps = usage + "".join(output(tool, c, "--help") for c in sorted(commands - {"watch"}))
    page = re.sub(r"(?m)^\tcairn watch .*$", "", page)  # examples of the command with a page of its own
    compare("options of cairn", options(helps), options(page))
    watch = re.sub(r"(?m)^\tcairn restore .*$", "", (PAGES / "cairn-watch.1.scd").read_text())
    compare("options of cairn watch", options(output(tool, "watch", "--help")), options(watch))
    for code in re.findall(r"\b([0-9]) [a-z]", usage.split("exit codes:")[1]):
        assert f"*{code}*" in page, f"exit code {code} is not in cairn(1)"


def check_daemon(daemon):
    page = (PAGES / "cairnd.8.scd").read_text()
    compare("options of cairnd", options(output(daemon, "--help")), options(page))


def keys(text, pattern):
    """{(section, key): default} of an ini-like text."""
    found, section = {}, None
    for line in text.splitlines():
        head = re.match(r"^(?:# )?\[([a-z]+)\]$", line)
        if head:
            section = head.group(1)
        entry = re.match(pattern, line)
        if section and entry:
            found[section, entry.group(1)] = entry.group(2).strip()
    return found


def check_configuration(daemon):
    printed = output(daemon, "--options")
    program = keys(printed, r"^([a-z_]+) =(.*)$")
    body = (PAGES / "cairnd.conf.5.scd").read_text().split("# EXAMPLES")[0]
    page = keys(body, r"^\*([a-z_]+)\* = (.*)$")
    compare("keys of cairnd.conf", set(program), set(page))
    for key, default in program.items():
        documented = "" if page[key].startswith("(") else page[key]
        assert documented == default, f"{key}: the default is \"{default}\", documented as \"{page[key]}\""
    example = keys((ROOT / "systemd" / "cairnd.conf").read_text(), r"^#([a-z_]+) =(.*)$")
    assert example == program, f"systemd/cairnd.conf differs from --options: {sorted(set(example.items()) ^ set(program.items()))}"


def check_json():
    page = (ROOT / "docs" / "json.md").read_text()
    sources = [ROOT / "daemon" / "main.c", *sorted((ROOT / "daemon" / "node").glob("query*.c")),
               *sorted((ROOT / "daemon" / "node").glob("command*.c")), ROOT / "daemon" / "node" / "repair.c", ROOT / "daemon" / "node" / "rebuild.c"]
    written = set(re.findall(r'(?:query_set|json_object_set_new)\(\w+, "(\w+)"', "".join(s.read_text() for s in sources)))
    missing = sorted(k for k in written if f'"{k}"' not in page)
    assert written and not missing, f"docs/json.md lacks {missing}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True, type=pathlib.Path)
    build = parser.parse_args().build
    check_tool(build / "client" / "tool" / "cairn")
    check_daemon(build / "daemon" / "cairnd")
    check_configuration(build / "daemon" / "cairnd")
    check_json()
    print("4 passed, 0 failed")


main()
