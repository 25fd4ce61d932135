# SPDX-License-Identifier: Apache-2.0
"""The codecs over each kind of the trained state, beside a loop that only reads it; and over a public model's weights when there are any."""
import json
import pathlib

from context import GB, MIB, json_of

GROUP = "codecs"
DTYPES = {"BF16": "bf16", "F32": "f32"}


def sections(ctx):
    """(kind, dtype, file): each section of the state in a file of its own."""
    meta = json.loads((ctx.data / "meta.json").read_text())
    for kind, (dtype, _, offset, size) in meta["sections"].items():
        size = min(size, ctx.sizes.codec_mib * MIB)
        path = ctx.scratch / "section.bin"
        with open(ctx.state, "rb") as f:
            f.seek(offset)
            path.write_bytes(f.read(size))
        yield kind, DTYPES[dtype], path
        path.unlink()


def described(weights):
    """What fetch_weights.py wrote down beside them."""
    try:
        return json.loads(pathlib.Path(f"{weights}.json").read_text())["note"]
    except (OSError, ValueError, KeyError):
        return pathlib.Path(weights).name


def one(ctx, kind, dtype, path, note=None):
    runs = 5 if ctx.quick else 15
    r = json_of([ctx.program("bench-codec"), path, dtype, "--runs", runs, "--mib", ctx.sizes.codec_mib], 120)
    read = r["read"]["median"]
    targets = {"float": (0.70, 0.35, 0.4), "dense": (0.67, 0.13, 0.2)} if dtype == "bf16" else {}
    for codec in ("float", "dense"):
        size, encode, decode = targets.get(codec, (None, None, None))
        name = "bf16" if kind == "model" else kind
        ctx.report.add(f"{codec}_ratio_{name}", "ratio", [r[codec]["ratio"]], target=("<=", size) if size else None, group=GROUP, note=note)
        for way, target in (("encode", encode), ("decode", decode)):
            v = r[codec][way]
            ctx.report.add(f"{codec}_{way}_over_read_{name}", "ratio", [v[k] / read for k in ("min", "median", "max")], group=GROUP,
                           target=(">=", target) if target else None, n=runs,
                           note=f"{v['median'] / GB:.1f} of {read / GB:.1f} GB/s, {r['kernel']}")
            ctx.floors[f"{codec}_{way}_{kind}"] = v["median"]
        ctx.floors[f"{codec}_ratio_{kind}"] = r[codec]["ratio"]


def run(ctx, weights=None):
    if not ctx.program("bench-codec"):
        ctx.report.missing("float_ratio_bf16", "ratio", "bench-codec is not built", target=("<=", 0.7), group=GROUP)
        return
    for kind, dtype, path in sections(ctx):
        one(ctx, kind, dtype, path)
    if weights:
        one(ctx, "public", "bf16", weights, described(weights))
    else:
        ctx.report.missing("float_ratio_public", "ratio", "no file of a public model's bfloat16 weights was given (--weights; bench/fetch_weights.py makes one)",
                           target=("<=", 0.7), group=GROUP)
