#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Fetches a public trained model's weights and writes their bfloat16 elements, one tensor after the other, for `bench/run --weights FILE`.

    bench/fetch_weights.py [MODEL | --url URL | --file PATH] [--sha256 HEX] [--out FILE]

MODEL is a name at huggingface.co whose model.safetensors holds it all (default: HuggingFaceTB/SmolLM2-135M, 270 MB). A download that was broken
off goes on where it was. A model that is stored as float32 or float16 is rounded to bfloat16 (this needs numpy), and the description beside the
output says so: FILE.json has the model, where it came from, its SHA-256 and what was done to it."""
import argparse
import hashlib
import json
import os
import pathlib
import re
import struct
import sys
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEFAULT = "HuggingFaceTB/SmolLM2-135M"
WIDTHS = {"BF16": 2, "F16": 2, "F32": 4}
MAX_HEADER = 100 << 20
PIECE = 1 << 20


class Trouble(Exception):
    """What is said to whoever called, without a traceback."""


def total_of(answer, have):
    """The whole file's length, or None when the server does not say."""
    if answer.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
        if not found or int(found.group(1)) != have:
            raise Trouble("the server answered with another range than it was asked for")
        return int(found.group(2))
    length = answer.headers.get("Content-Length")
    return int(length) if length and length.isdigit() else None


def download(url, to, seconds=60):
    """Into `to`, by way of a file beside it that is kept when it breaks off."""
    part = to.with_name(to.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "cairn-bench", **({"Range": f"bytes={have}-"} if have else {})})
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            have = have if answer.status == 206 else 0  # else it sends everything
            total = total_of(answer, have)
            with open(part, "r+b" if have else "wb") as f:
                f.seek(have)
                while piece := answer.read(PIECE):
                    have += f.write(piece)
    except urllib.error.HTTPError as e:
        if e.code != 416 or not have:
            raise Trouble(f"{url}: the server says {e.code} {e.reason}") from None
        part.unlink()
        raise Trouble(f"{url}: what was fetched before is longer than the file now; it is removed, try again") from None
    except (OSError, ValueError) as e:  # URLError is an OSError
        why = getattr(e, "reason", e)
        kept = f"; {have >> 20} MiB are kept and the next try goes on there" if have else ""
        raise Trouble(f"{url} cannot be fetched: {why}{kept}. Without a network give a file with --file") from None
    if total is not None and have != total:
        raise Trouble(f"{url}: {have} of {total} bytes came; they are kept and the next try goes on there")
    part.rename(to)


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while piece := f.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def tensors_of(f, size):
    """[(dtype, begin, end)] in the file, by its header, which is not trusted."""
    if size < 8:
        raise Trouble("this is no safetensors file: it has no header")
    (length,) = struct.unpack("<Q", f.read(8))
    if length > min(MAX_HEADER, size - 8):
        raise Trouble(f"this is no safetensors file: its header would have {length} bytes")
    try:
        header = json.loads(f.read(length))
        found = [(t["dtype"], *(8 + length + int(o) for o in t["data_offsets"])) for name, t in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise Trouble(f"this is no safetensors file: its header makes no sense ({type(e).__name__})") from None
    for tensor in found:
        if len(tensor) != 3 or not 8 + length <= tensor[1] <= tensor[2] <= size:
            raise Trouble("this is no safetensors file: a tensor lies outside of it")
    return sorted((t for t in found if t[0] in WIDTHS), key=lambda t: t[1])


def rounded(raw, dtype):
    """To the nearest bfloat16, ties to even; what is not a number stays that."""
    import numpy

    wide = numpy.frombuffer(raw, dtype="<f4" if dtype == "F32" else "<f2").astype("<f4")
    bits = wide.view("<u4")
    up = (bits >> 16).astype("<u2") + (((bits & 0xffff) + ((bits >> 16) & 1)) > 0x8000).astype("<u2")
    return numpy.where(numpy.isnan(wide), (bits >> 16) | 0x40, up).astype("<u2").tobytes()


def convert(source, to):
    """All float tensors as bfloat16. Returns {dtype: elements}."""
    counts, part = {}, to.with_name(to.name + ".part")
    with open(source, "rb") as f, open(part, "wb") as out:
        for dtype, begin, end in tensors_of(f, source.stat().st_size):
            f.seek(begin)
            step = PIECE * WIDTHS[dtype]
            for at in range(begin, end, step):
                raw = f.read(min(step, end - at) // WIDTHS[dtype] * WIDTHS[dtype])
                out.write(raw if dtype == "BF16" else rounded(raw, dtype))
                counts[dtype] = counts.get(dtype, 0) + len(raw) // WIDTHS[dtype]
    if not counts:
        part.unlink()
        raise Trouble(f"{source} has no float tensors")
    part.rename(to)
    return counts


def describe(name, url, digest, counts):
    cast = [d for d in counts if d != "BF16"]
    return {"model": name, "from": url, "sha256": digest, "elements": counts,
            "note": f"{name}, " + (f"stored as {' and '.join(cast)}, rounded to bfloat16" if cast else "stored as bfloat16")}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=DEFAULT)
    parser.add_argument("--url", help="of a .safetensors file")
    parser.add_argument("--file", type=pathlib.Path, help="a .safetensors file that is here already")
    parser.add_argument("--name", help="what it is called in the description")
    parser.add_argument("--sha256", help="of the .safetensors file")
    parser.add_argument("--out", type=pathlib.Path, help="default: build/bench-weights/NAME.bf16")
    return parser.parse_args()


def main():
    a = arguments()
    url = a.url or f"https://huggingface.co/{a.model}/resolve/main/model.safetensors"
    name = a.name or (a.file.stem if a.file else a.url.rsplit("/", 1)[-1] if a.url else a.model)
    where = ROOT / "build" / "bench-weights"
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "model"
    out, source = a.out or where / f"{stem}.bf16", a.file or where / f"{stem}.safetensors"
    where.mkdir(parents=True, exist_ok=True)
    if not a.file and not source.exists():
        print(f"fetching {url} ...", file=sys.stderr)
        download(url, source)
    digest = sha256_of(source)
    if a.sha256 and digest != a.sha256.lower():
        if not a.file:
            source.unlink()
        raise Trouble(f"{source} has the SHA-256 {digest}, not {a.sha256}" + ("" if a.file else "; it is removed"))
    counts = convert(source, out)
    text = describe(name, str(a.file or url), digest, counts)
    pathlib.Path(f"{out}.json").write_text(json.dumps(text, indent=1) + "\n")
    print(f"{out}: {sum(counts.values()) / 1e6:.1f} M elements, {text['note']}; SHA-256 of the source {digest}\nbench/run --weights {os.path.relpath(out)}")


if __name__ == "__main__":
    try:
        main()
    except (Trouble, OSError) as e:
        sys.exit(f"fetch_weights: {e}")
    except ImportError:
        sys.exit("fetch_weights: rounding to bfloat16 needs numpy: bench/run makes a Python that has it, build/bench-venv/bin/python")
