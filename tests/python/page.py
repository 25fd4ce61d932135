# SPDX-License-Identifier: Apache-2.0
"""The blocks of docs/python.md, and how each kind of them is run.

    ```python           run in order, in one namespace, as a notebook
    ```python ranks=2   a program of its own, run by as many ranks; before the notebook, which may read what they saved
    ```sh               each line that calls cairn is run with the build's tool
"""
import os
import pathlib
import re
from dataclasses import dataclass

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "python.md"


@dataclass
class Block:
    language: str
    ranks: int  # 0: part of the notebook
    line: int  # of its first line, in the page
    text: str

    def run(self, names):
        """Runs it in this process; a traceback names the page and its line."""
        exec(compile("\n" * (self.line - 1) + self.text, str(PAGE), "exec"), names)  # noqa: S102


def blocks():
    found, page = [], PAGE.read_text()
    for m in re.finditer(r"^```(\w+)(?: ranks=(\d+))?\n(.*?)^```$", page, re.M | re.S):
        found.append(Block(m[1], int(m[2] or 0), page.count("\n", 0, m.start(3)) + 1, m[3]))
    return found


def programs(ports):
    """One rank of every block that is a program, one after the other: importing torch takes longer than all of them. Each meets at a port of
    its own: the store of the one before may still be there."""
    for block, port in zip([b for b in blocks() if b.ranks], ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        block.run({"__name__": "__main__"})
