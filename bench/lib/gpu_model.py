# SPDX-License-Identifier: Apache-2.0
"""A GPT in bf16 with a fused AdamW, as large as the disk can follow, and steps as long as they are in training."""
import torch
from torch import nn
from torch.nn import functional as F

# layers, width, heads: GPT-2's shapes and between.
SHAPES = {"tiny": (2, 64, 2), "124M": (12, 768, 12), "350M": (24, 1024, 16), "760M": (24, 1536, 16)}
VOCABULARY = 32768
STATE_BYTES = 6  # of each parameter: weight and two moments, all bf16


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Gpt(nn.Module):
    def __init__(self, shape, vocabulary, length):
        super().__init__()
        layers, width, heads = SHAPES[shape]
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.register_buffer("passes", torch.zeros((), dtype=torch.float32))  # what forward changes: staged when a save begins

    def forward(self, tokens):
        self.passes += 1
        x = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


class Training:
    """forward_backward() and update(): between them stands the fence."""

    def __init__(self, on, shape, batch, length):
        torch.manual_seed(7)
        vocabulary = VOCABULARY if shape != "tiny" else 512
        with torch.device(on.kind):  # made there: a processor would take seconds to draw so many numbers
            self.model = Gpt(shape, vocabulary, length).to(dtype=torch.bfloat16)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.length, self.vocabulary, self.device = length, vocabulary, on.kind
        self.resize(batch)

    def resize(self, batch):
        self.batch = batch
        self.data = torch.randint(0, self.vocabulary, (batch, self.length + 1), device=self.device)

    def forward_backward(self):
        logits = self.model(self.data[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), self.data[:, 1:].flatten()).backward()

    def update(self):
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state(self):
        return {"model": self.model, "optimizer": self.optimizer, "step": 0}

    def bytes(self):
        return sum(p.numel() for p in self.model.parameters()) * STATE_BYTES


def parameters(shape):
    layers, width, _ = SHAPES[shape]
    return layers * 12 * width * width + VOCABULARY * width


def choose(disk_write, seconds):
    """The largest whose state the disk can take within so much time; the smallest if none. The daemon's codecs help it: 1.2 is little."""
    fitting = [s for s in ("124M", "350M", "760M") if parameters(s) * STATE_BYTES <= disk_write * 1.2 * 0.8 * seconds]
    return fitting[-1] if fitting else "124M"
