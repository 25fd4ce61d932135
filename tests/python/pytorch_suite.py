# SPDX-License-Identifier: Apache-2.0
"""Runs PyTorch's own tests for checkpoint storage, unmodified, with Cairn in the place of the file system.

    CAIRN_LIBRARY=build/dev/client/libcairn.so.0 python tests/python/pytorch_suite.py CHECKOUT [FILE ...]

CHECKOUT is PyTorch's source (test/distributed/checkpoint is all that is used); FILEs are names in that directory, by default
those below. PyTorch's test utilities need the package expecttest. The daemon is a real one; pytorch_shim/ makes the
replacement in every process that a test starts. Prints a table for docs/python-matrix.md and ends with 1 if a test failed.
"""
import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml

HERE = pathlib.Path(__file__).resolve().parent
FILES = (
    "test_file_system_checkpoint_cpu.py", "test_file_system_checkpoint.py", "test_checkpoint.py", "test_planner.py",
    "test_save_load_api.py", "test_dtensor_checkpoint.py", "test_dtensor_resharding.py", "test_tp_checkpoint.py",
    "test_torch_save_to_dcp.py", "test_format_utils.py", "test_nested_dict.py", "test_traverse.py", "test_dedup_tensors.py",
    "test_utils.py", "test_async_process_executor.py", "test_state_dict_utils.py", "test_state_dict.py",
    "e2e/test_e2e_save_and_load.py",
)


def environment(checkout, socket):
    """socket: the daemon's, or None to leave torch's file-system classes where they are."""
    paths = [*([HERE / "pytorch_shim"] if socket else []), HERE.parents[1] / "client" / "python" / "src", checkout / "test"]
    path = os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")])
    return dict(os.environ, PYTHONPATH=path, CAIRN_SOCKET=socket or "", PYTHONDONTWRITEBYTECODE="1",
                OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo", TMPDIR=tempfile.gettempdir())


def run_file(checkout, name, socket, seconds, chosen):
    """(file, {test: (outcome, reason)}): "passed", "failed", "skipped"."""
    with tempfile.TemporaryDirectory() as tmp:
        report = pathlib.Path(tmp) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", f"--junitxml={report}",
                   str(checkout / "test" / "distributed" / "checkpoint" / name), *(["-k", chosen] if chosen else [])]
        try:
            done = subprocess.run(command, cwd=tmp, env=environment(checkout, socket), timeout=seconds, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, text=True, check=False)
        except subprocess.TimeoutExpired:
            return {name: ("failed", f"not done within {seconds} s")}
        if not report.exists():
            return {name: ("failed", done.stdout[-2000:])}
        return {case.get("name"): outcome_of(case) for case in xml.parse(report).getroot().iter("testcase")}


def outcome_of(case):
    for tag, outcome in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
        found = case.find(tag)
        if found is not None:
            return outcome, f'{found.get("message") or ""} {found.text or ""}'.strip()
    return "passed", ""


def table(results):
    lines = ["| file | passed | failed | skipped | why skipped |", "| --- | --- | --- | --- | --- |"]
    for name, tests in results.items():
        count = {o: sum(outcome == o for outcome, _ in tests.values()) for o in ("passed", "failed", "skipped")}
        reasons = sorted({reason.splitlines()[0][:80] for outcome, reason in tests.values() if outcome == "skipped" and reason})
        lines.append(f"| {name} | {count['passed']} | {count['failed']} | {count['skipped']} | {'; '.join(reasons)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=pathlib.Path)
    parser.add_argument("files", nargs="*", default=FILES)
    parser.add_argument("-k", dest="chosen", help="only tests that match, as pytest's -k")
    parser.add_argument("--file-system", action="store_true", help="with torch's own classes instead, to compare")
    parser.add_argument("--seconds", type=float, default=600.0, help="for each file")
    options = parser.parse_intermixed_args()
    sys.path.insert(0, str(HERE))
    from conftest import Daemon

    daemon = Daemon().start()
    results = {}
    try:
        for name in options.files:
            if (options.checkout / "test" / "distributed" / "checkpoint" / name).exists():
                socket = None if options.file_system else daemon.socket
                results[name] = run_file(options.checkout.resolve(), name, socket, options.seconds, options.chosen)
                for test, (outcome, reason) in results[name].items():
                    if outcome == "failed":
                        print(f"FAILED {name} {test}: {reason[-3000:]}\n", flush=True)
        jobs = daemon.cairn("ls", "--json", "--socket", daemon.socket).stdout.count('"pytorch-')
    finally:
        daemon.close()
    print(table(results))
    print(f"jobs that these tests made in Cairn: {jobs}")
    return any(outcome == "failed" for tests in results.values() for outcome, _ in tests.values())


if __name__ == "__main__":
    sys.exit(main())
