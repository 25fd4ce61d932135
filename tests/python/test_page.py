# SPDX-License-Identifier: Apache-2.0
"""docs/python.md does what it says: every block runs, in the page's order, against one daemon. Catches a name or an argument that has
changed under the page, and an example that does not work when it is copied."""
import shlex
import sys

import conftest
import page
import ranks


def run_tool(cluster, text):
    for line in text.splitlines():
        command = shlex.split(line, comments=True)
        if command[:1] == ["cairn"]:
            done = cluster.cairn(*command[1:], cwd=cluster.root)
            assert done.returncode == 0, f"{line}: {done.returncode}\n{done.stdout}{done.stderr}"


def test_every_block_runs(cluster, monkeypatch):
    monkeypatch.chdir(cluster.root)
    monkeypatch.setenv("CAIRN_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", str(conftest.ROOT / "client" / "python" / "src"))
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    blocks, names = page.blocks(), {"__name__": "__main__"}
    assert len(blocks) >= 12 and {b.ranks for b in blocks} == {0, 2}, "the page has lost blocks"
    ports = [ranks.free_port() for b in blocks if b.ranks]
    ranks.run_ranks(2, "page:programs", {"ports": ports}, timeout=80)
    for block in blocks:
        if block.language == "sh":
            run_tool(cluster, block.text)
        elif not block.ranks:
            block.run(names)
    for value in names.values():
        if hasattr(value, "close"):
            value.close()
