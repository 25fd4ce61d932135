# SPDX-License-Identifier: Apache-2.0
"""python3 -m cairn.convert export|import: what the tool `cairn` runs. Exit codes are the tool's
(cairn(1))."""

from __future__ import annotations

import argparse
import json
import resource
import signal
import sys
from typing import Any, Dict, List, Optional

from ..errors import Error
from .errors import ConvertError, exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cairn.convert", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    out = verbs.add_parser("export", help="writes a checkpoint as files")
    out.add_argument("--to", required=True, metavar="DIR")
    out.add_argument("--format", required=True, choices=("torch", "dcp"))
    out.add_argument("--merge", action="store_true", help="one file instead of one for each rank (torch)")
    out.add_argument("--rank", type=int)
    out.add_argument("--only", metavar="PREFIX")
    out.add_argument("--strip", metavar="PREFIX")
    out.add_argument("--force", action="store_true")
    take = verbs.add_parser("import", help="makes a checkpoint of files")
    take.add_argument("--path", required=True)
    take.add_argument("--format", default="auto", choices=("auto", "dcp", "torch", "safetensors"))
    take.add_argument("--arena", type=int, metavar="BYTES")
    take.add_argument(
        "--unchecked", action="store_true", help="do not compare CRC-32 sums of torch.save files"
    )
    for verb in (out, take):
        verb.add_argument("--job", required=True)
        verb.add_argument("--step", type=int)
        verb.add_argument("--socket")
        verb.add_argument("--timeout", type=float, default=3600.0, metavar="SECONDS")
        verb.add_argument("--json", action="store_true")
    return parser


def _export(options: argparse.Namespace) -> Dict[str, Any]:
    from .exporter import Wish, export

    done = export(Wish(
        options.job, options.step, options.to, options.format, options.merge, options.rank, options.only, options.strip,
        options.force, options.socket, options.timeout, options.json))  # fmt: skip
    if not options.json:
        for file in done["files"]:
            print(file["path"])
    return done


def _import(options: argparse.Namespace) -> Dict[str, Any]:
    from .importer import ARENA_BYTES, Target, import_source, open_source

    target = Target(
        options.job, options.step, options.socket, options.timeout, options.arena or ARENA_BYTES, options.json
    )
    source = open_source(options.path, options.format, not options.unchecked)
    try:
        done = import_source(source, target)
    finally:
        source.close()
    if not options.json:
        print(
            f"job {done['job']}, step {done['step']}, incarnation {done['incarnation']}: {done['tensors']} tensors, "
            f"{done['bytes'] / (1 << 20):.1f} MiB"
        )
    return done


def _fail(what: str, code: str, message: str, as_json: bool) -> int:
    print(f"cairn: {what}: {message}", file=sys.stderr)
    if as_json:
        print(json.dumps({"v": 1, "error": {"code": code, "message": message}}, separators=(",", ":")))
    return exit_code(code)


def _allow_files() -> None:
    """A checkpoint of thousands of ranks is as many files, all open while they are read."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main(arguments: Optional[List[str]] = None) -> int:
    """Runs one command. Returns its exit code; a wrong command line raises SystemExit(2)."""
    options = _parser().parse_args(arguments)
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # so that what is half made is given up
    _allow_files()
    try:
        done = _export(options) if options.verb == "export" else _import(options)
    except (ConvertError, Error) as error:
        return _fail(options.verb, error.code, str(error), options.json)
    except OSError as error:
        return _fail(
            options.verb,
            "not_found" if isinstance(error, FileNotFoundError) else "io",
            str(error),
            options.json,
        )
    except ImportError as error:
        why = (
            f"{sys.executable} cannot import what this format needs ({error}): pip install torch, or name an "
        )
        return _fail(
            options.verb, "unsupported", why + "interpreter that has it in CAIRN_PYTHON", options.json
        )
    except KeyboardInterrupt:
        return _fail(options.verb, "intr", "interrupted", options.json)
    if options.json:
        print(json.dumps(done, separators=(",", ":")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
