# SPDX-License-Identifier: Apache-2.0
"""Runs in the benchmark's Python environment: trains a GPT-2 on text that every machine with Python has, and writes its state and the
tables of workloads that are filled from it (bench/table.h).

    train.py --out DIR --layers 12 --vocab 50257 --seconds 60

Weights are bfloat16 with a float32 master copy and Adam's two moments, all from a real run: forward and backward in bfloat16, AdamW with
warm-up on the master copy. The text is the source of Python's standard library; words and signs are tokens, the most frequent ones first.
A run of a minute is a real one and a short one: weights are near their initial values, and embeddings of words that no batch had have
moments of zero. meta.json says how many steps it was and how the loss fell."""
import argparse
import json
import pathlib
import re
import sysconfig
import time

import torch
from torch import nn
from torch.nn import functional as F

WIDTH, HEADS, CONTEXT = 768, 12, 1024
DTYPES = {torch.bfloat16: ("BF16", 2), torch.float32: ("F32", 4)}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.c_attn, self.attn_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.c_fc, self.mlp_proj = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = (y.view(b, t, HEADS, -1).transpose(1, 2) for y in self.c_attn(self.ln_1(x)).split(WIDTH, 2))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, WIDTH)
        x = x + self.attn_proj(a)
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class Gpt2(nn.Module):
    def __init__(self, layers, vocab):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.h = nn.ModuleList(Block() for _ in range(layers))
        self.ln_f = nn.LayerNorm(WIDTH)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02 / (2 * layers) ** 0.5 if name.endswith("proj.weight") else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, ids):
        x = self.wte(ids) + self.wpe.weight[: ids.shape[1]]
        for block in self.h:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight)


def tokens(vocab, most=4_000_000):
    text, counts = [], {}
    for path in sorted(pathlib.Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text += re.findall(r"\w+|[^\w\s]|\n| +", path.read_text(errors="replace"))
        if len(text) > most:
            break
    for word in text:
        counts[word] = counts.get(word, 0) + 1
    ids = {w: i % vocab for i, (w, _) in enumerate(sorted(counts.items(), key=lambda kv: (-kv[1], kv[0])))}
    return torch.tensor([ids[w] for w in text])


def train(model, data, seconds, batch=4, length=128):
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1)
    losses, begin = [], time.monotonic()
    while len(losses) < 4 or time.monotonic() - begin < seconds:
        for group in optimizer.param_groups:
            group["lr"] = 6e-4 * min(1, (len(losses) + 1) / 20)
        at = torch.randint(len(data) - length - 1, (batch,))
        x = torch.stack([data[i : i + length] for i in at])
        y = torch.stack([data[i + 1 : i + 1 + length] for i in at])
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
        loss = F.cross_entropy(logits.float().flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return optimizer, losses


def kinds(model, optimizer):
    """The four kinds of state of each parameter, in the order of the sections."""
    params = dict(model.named_parameters())
    yield "model", {n: p.detach().bfloat16() for n, p in params.items()}
    yield "master", {n: p.detach() for n, p in params.items()}
    yield "exp_avg", {n: optimizer.state[p]["exp_avg"] for n, p in params.items()}
    yield "exp_avg_sq", {n: optimizer.state[p]["exp_avg_sq"] for n, p in params.items()}


def write_state(path, model, optimizer):
    """The sections one after the other. Returns {kind: (dtype, element bytes, offset, bytes)} and the model's own table."""
    sections, lines = {}, []
    with open(path, "wb") as f:
        for kind, tensors in kinds(model, optimizer):
            f.write(b"\0" * (-f.tell() % 4096))
            begin = f.tell()
            places = []
            for name, t in tensors.items():
                places.append((name, f.tell() - begin, t.shape))
                f.write(t.contiguous().view(torch.uint8).numpy().data)
            dtype, width = DTYPES[t.dtype]
            sections[kind] = (dtype, width, begin, f.tell() - begin)
            lines += [(kind, at, f"{kind}.{name}", shape) for name, at, shape in places]
    return sections, lines


def write_table(path, sections, lines):
    with open(path, "w") as f:
        for kind, at, name, shape in lines:
            dtype, _, offset, size = sections[kind]
            f.write(f"{dtype} {offset} {size} {at} {name} {' '.join(map(str, shape))}\n")


def shaped(sections, shapes):
    """Any model's shapes in the four kinds, each filled from where the one before it ended."""
    lines = []
    for kind, (_, width, _, size) in sections.items():
        at = 0
        for name, shape in shapes:
            lines.append((kind, at % size, f"{kind}.{name}", shape))
            n = width
            for d in shape:
                n *= d
            at += n
    return lines


def llama_layer(i):
    """Llama-3-8B: 4096 wide, 8 heads of keys and values, 14336 in the MLP."""
    return [(f"layers.{i}.{name}.weight", shape) for name, shape in (
        ("self_attn.q_proj", (4096, 4096)), ("self_attn.k_proj", (1024, 4096)), ("self_attn.v_proj", (1024, 4096)),
        ("self_attn.o_proj", (4096, 4096)), ("mlp.gate_proj", (14336, 4096)), ("mlp.up_proj", (14336, 4096)),
        ("mlp.down_proj", (4096, 14336)), ("input_layernorm", (4096,)), ("post_attention_layernorm", (4096,)))]


def small(count, total):
    """Many small tensors, as adapters, norms and biases are: 2500 shapes in four kinds; a few of them are most of the bytes."""
    sizes = [16 << i % 10 for i in range(count // 4)]
    scale = total / (14 * sum(sizes))
    return [(f"small.{i}", (max(1, int(n * scale)),)) for i, n in enumerate(sizes)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocab", type=int, default=50257)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--small-mib", type=int, default=256)
    a = parser.parse_args()
    torch.manual_seed(7)
    model = Gpt2(a.layers, a.vocab)
    optimizer, losses = train(model, tokens(a.vocab), a.seconds)
    a.out.mkdir(parents=True, exist_ok=True)
    sections, own = write_state(a.out / "state.bin", model, optimizer)
    write_table(a.out / "gpt2.table", sections, own)
    write_table(a.out / "llama.table", sections, shaped(sections, llama_layer(0)))
    write_table(a.out / "small.table", sections, shaped(sections, small(10000, a.small_mib << 20)))
    meta = {"model": f"GPT-2 shapes, {a.layers} layers, {a.vocab} tokens", "parameters": sum(p.numel() for p in model.parameters()),
            "steps": len(losses), "loss_first": losses[0], "loss_last": losses[-1], "sections": sections}
    (a.out / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")


main()
