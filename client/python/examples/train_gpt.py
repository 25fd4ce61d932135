#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains a small GPT on text that this machine has, saves through Cairn, and goes on where it was killed.

    python train_gpt.py                                                      one process
    torchrun --nproc-per-node 2 train_gpt.py --parallel ddp                  two ranks with the same state
    torchrun --nproc-per-node 2 train_gpt.py --parallel fsdp                 two ranks with half of it each

To feel a failure: in the middle of step 25 a rank gets SIGKILL, torchrun starts both again, they resume:

    torchrun --nproc-per-node 2 --max-restarts 1 train_gpt.py --parallel ddp --kill-at 25

To see what each save costs beside what PyTorch brings along, in one run over the same state:

    torchrun --nproc-per-node 2 train_gpt.py --parallel ddp --checkpoint cairn,torch,dcp-async --every 5

Needs a cairnd on this node ($CAIRN_SOCKET, or /run/cairn/cairnd.sock). A resumed run has the same losses as
one that nothing happened to, to the last bit: order of the data, dropout, schedule and moments are part of
the checkpoint. (Gradients of two ranks are added up the same way in every step; with more ranks and ddp the
last bit may depend on how they fell into buckets.)
"""
import argparse
import ctypes
import datetime
import hashlib
import json
import math
import os
import pathlib
import shutil
import signal
import sys
import sysconfig
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Tuple

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products on a GPU

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.distributed.checkpoint as dcp  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions  # noqa: E402
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict  # noqa: E402
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.fsdp import fully_shard  # noqa: E402
from torch.distributed.tensor import DTensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import cairn  # noqa: E402

VOCABULARY = 256  # a token is a byte
TIMEOUT = datetime.timedelta(seconds=120)  # of whatever ranks wait for each other
State = Dict[str, Any]


# ---- where this process stands -----------------------------------------------------------------------------


@dataclass
class World:
    """This process's place among the ranks, as torchrun says it; a world of 1 without torchrun."""

    rank: int
    size: int
    device: torch.device
    restarts: int  # how often torchrun has started the ranks again

    @classmethod
    def join(cls, device: str) -> "World":
        """Joins the process group when there is one to join."""
        env = os.environ
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda":
            torch.cuda.set_device(int(env.get("LOCAL_RANK", 0)))
        world = cls(int(env.get("RANK", 0)), int(env.get("WORLD_SIZE", 1)), torch.device(device),
                    int(env.get("TORCHELASTIC_RESTART_COUNT", 0)))
        if "RANK" in env:
            dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=TIMEOUT,
                                    store=world._store(), rank=world.rank, world_size=world.size)
        return world

    def _store(self) -> dist.Store:
        """Where ranks find each other. Torchrun's outlives them: those of a second start look in a place of their
        own, or gloo may find the addresses of dead ones there and wait for them."""
        env = os.environ
        serve = self.rank == 0 and env.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        store = dist.TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), self.size, serve, timeout=TIMEOUT)
        return dist.PrefixStore(f"start-{self.restarts}", store)

    def barrier(self) -> None:
        if dist.is_initialized():
            dist.barrier()

    def mean(self, value: Tensor) -> float:
        """The mean over all ranks, in double precision and the same bits on each."""
        total = value.detach().double().cpu()
        if dist.is_initialized():
            dist.all_reduce(total)
        return total.item() / self.size

    def gather(self, value: Any) -> List[Any]:
        """Every rank's value, in the order of ranks."""
        values: List[Any] = [value] * self.size
        if dist.is_initialized():
            dist.all_gather_object(values, value)
        return values

    def say(self, text: str) -> None:
        if self.rank == 0:
            print(text, flush=True)


# ---- data --------------------------------------------------------------------------------------------------


def find_text(path: Optional[str], limit: int = 4 << 20) -> bytes:
    """Text of at most `limit` bytes: of `path`, or the first that there is enough of: the sources of Python's
    standard library, the licenses of a Debian system, this program."""
    if path:
        return pathlib.Path(path).read_bytes()[:limit]
    for directory, pattern in ((sysconfig.get_path("stdlib"), "*.py"), ("/usr/share/common-licenses", "*")):
        files = sorted(f for f in pathlib.Path(directory).glob(pattern) if f.is_file() and not f.is_symlink())
        text = b"\n".join(f.read_bytes() for f in files)[:limit]
        if len(text) >= 1 << 16:
            return text
    return pathlib.Path(__file__).read_bytes()


class Windows:
    """Batches of windows of a text, shuffled anew for each epoch. Where it is are two numbers of the state.

    A batch is cut for the ranks: whatever their number, together they see the same windows in the same order.
    """

    def __init__(self, text: bytes, context: int, batch: int, world: World, seed: int) -> None:
        if batch % world.size:
            raise SystemExit(f"--batch {batch} cannot be divided among {world.size} ranks")
        if len(text) // context < batch + 1:
            raise SystemExit(f"{len(text)} bytes of text are too few for {batch} windows of {context}")
        self.text = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        self.digest = hashlib.sha256(text).hexdigest()
        self.context, self.batch, self.world, self.seed = context, batch, world, seed
        self.epoch, self.position = 0, 0  # the position counts windows of this epoch
        self._shuffle()

    def _shuffle(self) -> None:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        self.order = torch.randperm((len(self.text) - 1) // self.context, generator=generator)

    def next(self) -> Tuple[Tensor, Tensor]:
        """This rank's inputs and targets, int64 [batch / ranks, context]; a target is the byte after."""
        if self.position + self.batch > len(self.order):
            self.epoch, self.position = self.epoch + 1, 0
            self._shuffle()
        share = self.batch // self.world.size
        mine = self.position + self.world.rank * share
        self.position += self.batch
        begin = self.order[mine:mine + share, None] * self.context
        window = self.text[begin + torch.arange(self.context + 1)].long().to(self.world.device)
        return window[:, :-1], window[:, 1:]

    def state_dict(self) -> State:
        return {"epoch": self.epoch, "position": self.position, "text": self.digest}

    def load_state_dict(self, state: State) -> None:
        if state["text"] != self.digest:
            raise SystemExit(f"the checkpoint was trained on another text (SHA-256 {state['text'][:12]}, "
                             f"here {self.digest[:12]}): name that one with --text, or another --job")
        self.epoch, self.position = state["epoch"], state["position"]
        self._shuffle()


# ---- model -------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, context, width = x.shape
        # [3, batch, heads, context, width of a head]
        q, k, v = self.qkv(x).view(batch, context, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        # Written out: fused kernels have no deterministic backward on every device.
        score = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        future = torch.ones(context, context, dtype=torch.bool, device=x.device).triu(1)
        weight = F.dropout(score.masked_fill(future, -math.inf).softmax(-1), self.dropout, self.training)
        return self.out((weight @ v).transpose(1, 2).reshape(batch, context, width))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width),
                                 nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Bytes [batch, context] to logits [batch, context, 256]. Embedding and head have one weight (tied)."""

    def __init__(self, layers: int, width: int, heads: int, context: int, dropout: float) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(VOCABULARY, width), nn.Embedding(context, width)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.apply(self._init)
        self.head.weight = self.token.weight

    @staticmethod
    def _init(module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.drop(self.token(tokens) + self.place(torch.arange(tokens.shape[1], device=tokens.device)))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def spread(model: GPT, parallel: str, world: World) -> nn.Module:
    """The model among the ranks: whole on each with gradients averaged (ddp), or cut (fsdp)."""
    model = model.to(world.device)
    if parallel == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    if parallel == "fsdp":
        mesh = init_device_mesh(world.device.type, (world.size,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def schedule(steps: int, warmup: int) -> Callable[[int], float]:
    """Factor of the learning rate: linear warm-up, then a cosine down to a tenth."""
    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.55 + 0.45 * math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup)))
    return factor


# ---- the training's state ----------------------------------------------------------------------------------


class Training:
    """Everything that a step reads and writes; state() and restore() are what a checkpoint is made of."""

    def __init__(self, a: argparse.Namespace, world: World) -> None:
        torch.manual_seed(a.seed)  # the same weights on every rank
        self.world = world
        self.model = spread(GPT(a.layers, a.width, a.heads, a.context, a.dropout), a.parallel, world)
        torch.manual_seed(a.seed + 1 + world.rank)  # another dropout on each
        self.data = Windows(find_text(a.text), a.context, a.batch, world, a.seed)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), a.lr, betas=(0.9, 0.95), weight_decay=0.1)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, schedule(a.steps, a.steps // 10))

    def forward(self) -> Tensor:
        inputs, targets = self.data.next()
        return F.cross_entropy(self.model(inputs).flatten(0, 1), targets.flatten())

    def backward(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.scheduler.step()

    def state(self) -> State:
        """The tensors are those that the training uses, not copies; what a rank has alone is below "own"."""
        weights, moments = get_state_dict(self.model, self.optimizer)
        own = {"cpu": torch.get_rng_state()}
        if self.world.device.type == "cuda":
            own["cuda"] = torch.cuda.get_rng_state()
        return {"model": weights, "optimizer": moments, "scheduler": self.scheduler.state_dict(),
                "data": self.data.state_dict(), "own": own}

    def restore(self, state: State) -> None:
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"],
                       optim_state_dict=state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.data.load_state_dict(state["data"])
        torch.set_rng_state(state["own"]["cpu"])
        if "cuda" in state["own"]:
            torch.cuda.set_rng_state(state["own"]["cuda"])


def tensors(node: Any) -> List[Tensor]:
    """All tensors of a state, what this rank has of them, in the order of the containers."""
    if isinstance(node, DTensor):
        return [node.to_local()]
    if isinstance(node, Tensor):
        return [node]
    children = node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ()
    return [t for child in children for t in tensors(child)]


def digest(state: State) -> str:
    """SHA-256 of this rank's tensors, bit by bit."""
    sha = hashlib.sha256()
    for t in tensors(state):
        t = t.detach().cpu().contiguous()
        sha.update(ctypes.string_at(t.data_ptr(), t.nbytes))
    return sha.hexdigest()


# ---- ways to save it ---------------------------------------------------------------------------------------


class Cairn:
    """save() costs one copy into shared memory; the daemon goes on by itself."""

    def __init__(self, checkpointer: cairn.Checkpointer) -> None:
        self.checkpointer = checkpointer

    def save(self, step: int, state: State) -> None:
        self.handle = self.checkpointer.save(step, state)  # None: it failed and warned, training goes on

    def finish(self) -> None:
        """Until what was saved last is committed."""
        if self.handle:
            self.handle.wait("committed", timeout=60)


class Files:
    """What both ways of PyTorch have in common: a directory for each save, of which the last one is kept."""

    def __init__(self, directory: str, name: str, a: argparse.Namespace, world: World) -> None:
        self.root, self.world, self.sharded = pathlib.Path(directory) / name, world, a.parallel == "fsdp"
        if world.rank == 0:
            self.root.mkdir(parents=True, exist_ok=True)
        world.barrier()

    def path(self, step: int) -> pathlib.Path:
        return self.root / f"step-{step:08d}"

    def remove_before(self, step: int) -> None:
        if self.world.rank == 0:
            for old in self.root.iterdir():
                if old != self.path(step):
                    shutil.rmtree(old)


class TorchSave(Files):
    """torch.save() and fsync: by the first rank where all have the same, by each where the model is cut."""

    def save(self, step: int, state: State) -> None:
        if self.world.rank == 0 or self.sharded:
            self.path(step).mkdir(exist_ok=True)
            with open(self.path(step) / f"rank-{self.world.rank}.pt", "wb") as f:
                torch.save(state, f)
                f.flush()
                os.fsync(f.fileno())
        self.world.barrier()  # it is a checkpoint when all have saved
        self.step = step

    def finish(self) -> None:
        self.remove_before(self.step)


class DcpAsync(Files):
    """torch.distributed.checkpoint.async_save(); staging memory is new for each save, by default, or kept."""

    def __init__(self, keep: bool, directory: str, a: argparse.Namespace, world: World) -> None:
        super().__init__(directory, "dcp-async-kept" if keep else "dcp-async", a, world)
        self.stager = DefaultStager(StagingOptions(False, False, False, False)) if keep else None
        # It talks to other ranks behind our back: in the group of the gradients these would be taken for each other.
        self.group = dist.new_group(backend="gloo") if dist.is_initialized() else None

    def save(self, step: int, state: State) -> None:
        self.step = step
        self.pending = dcp.async_save(state, checkpoint_id=self.path(step), async_stager=self.stager,
                                      process_group=self.group)

    def finish(self) -> None:
        self.pending.result()
        self.world.barrier()
        self.remove_before(self.step)


def ways(a: argparse.Namespace, world: World, checkpointer: cairn.Checkpointer) -> Dict[str, Any]:
    """The ways of --checkpoint by name, in its order."""
    makers = {"cairn": lambda: Cairn(checkpointer),
              "torch": lambda: TorchSave(a.directory, "torch", a, world),
              "dcp-async": lambda: DcpAsync(False, a.directory, a, world),
              "dcp-async-kept": lambda: DcpAsync(True, a.directory, a, world)}
    names = a.checkpoint.split(",")
    if unknown := [name for name in names if name not in makers]:
        raise SystemExit(f"--checkpoint {unknown[0]}: it is {', '.join(makers)}, or several in turns")
    return {name: makers[name]() for name in names}


class Saves:
    """Saves every N steps, one way after the other, and notes for how long each held up this rank.

    With several ways each save waits, outside of what is measured, for the one before to be finished: nobody
    pays for what another one left in the background.
    """

    def __init__(self, a: argparse.Namespace, world: World, checkpointer: cairn.Checkpointer) -> None:
        self.ways, self.world, self.file = ways(a, world, checkpointer), world, a.stalls
        self.names = list(self.ways)
        self.stalls: Dict[str, List[float]] = {name: [] for name in self.names}  # milliseconds
        self.count, self.running = 0, None

    def save(self, step: int, state: State) -> str:
        name = self.names[self.count % len(self.names)]
        self.count += 1
        if len(self.names) > 1:
            self.finish()
            self.world.barrier()
        begin = time.perf_counter()
        self.ways[name].save(step, state)
        self.stalls[name].append(1e3 * (time.perf_counter() - begin))
        self.running = self.ways[name]
        return f"{name}: saved, stall {self.stalls[name][-1]:.1f} ms"

    def finish(self) -> None:
        if self.running:
            self.running.finish()

    def report(self, state: State) -> None:
        """Writes --stalls: a rank's bytes of state; of each way the stalls in milliseconds, rank by rank."""
        of_ranks = self.world.gather(self.stalls)
        if self.file and self.world.rank == 0:
            result = {"bytes": sum(t.nbytes for t in tensors(state)),
                      "stalls_ms": {name: [of_rank[name] for of_rank in of_ranks] for name in self.names}}
            pathlib.Path(self.file).write_text(json.dumps(result))


# ---- training ----------------------------------------------------------------------------------------------


class Losses:
    """--losses: a line for each step, its loss as an exact hexadecimal number; a resumed run goes on."""

    def __init__(self, path: Optional[str], resumed: int, world: World) -> None:
        self.file = None
        if path and world.rank == 0:
            lines = open(path).read().splitlines(True) if resumed and os.path.exists(path) else []
            self.file = open(path, "w")
            self.file.writelines(lines[:resumed])

    def add(self, text: str) -> None:
        if self.file:
            self.file.write(text + "\n")
            self.file.flush()


def die(a: argparse.Namespace, world: World, resumed: int, step: int, when: str) -> None:
    """SIGKILL for this process, if it is the one: once, not again in the run that resumes."""
    here = (step, when, world.rank) == (a.kill_at, a.kill_when, a.kill_rank % world.size)
    if here and not resumed and not world.restarts:
        print(f"rank {world.rank}: kill -9 of myself, step {step}, {KILL_WHEN[when]}", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


def resume(training: Training, checkpointer: cairn.Checkpointer) -> int:
    """The step that the training goes on behind; 0: from the beginning."""
    state = training.state()
    begin = time.perf_counter()
    step = checkpointer.load(state)
    took = time.perf_counter() - begin
    if step is None:
        training.optimizer.state.clear()  # get_state_dict() has made moments by a step that changed nothing
        return 0
    training.restore(state)
    training.world.say(f"resumed from step {step}, read in {1e3 * took:.0f} ms")
    return step


def train(a: argparse.Namespace, world: World, checkpointer: cairn.Checkpointer) -> None:
    training = Training(a, world)
    resumed = resume(training, checkpointer)
    saves, losses = Saves(a, world, checkpointer), Losses(a.losses, resumed, world)
    for step in range(resumed + 1, a.steps + 1):
        begin = time.perf_counter()
        loss = training.forward()
        die(a, world, resumed, step, "step")
        training.backward(loss)
        mean = world.mean(loss)
        losses.add(f"{step} {mean.hex()}")
        text = f"step {step}: loss {mean:.4f}, {1e3 * (time.perf_counter() - begin):.0f} ms"
        if step % a.every == 0:
            text += "; " + saves.save(step, training.state())
            die(a, world, resumed, step, "saved")
        world.say(text)
    saves.finish()
    state = training.state()
    losses.add("state " + " ".join(world.gather(digest(state))))
    saves.report(state)


KILL_WHEN = {"step": "between forward and backward", "saved": "right after its save"}


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--job", default="train-gpt", help="the run's name in Cairn: the same one resumes")
    p.add_argument("--parallel", choices=("none", "ddp", "fsdp"), default="none")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    p.add_argument("--steps", type=int, default=100)
    p.add_argument("--every", type=int, default=10, help="steps between saves (%(default)s)")
    p.add_argument("--text", help="a file to learn; default: the sources of Python's standard library")
    p.add_argument("--layers", type=int, default=4)
    p.add_argument("--width", type=int, default=256)
    p.add_argument("--heads", type=int, default=4)
    p.add_argument("--context", type=int, default=64, help="bytes that the model sees (%(default)s)")
    p.add_argument("--batch", type=int, default=8, help="windows in a step, of all ranks (%(default)s)")
    p.add_argument("--dropout", type=float, default=0.1)
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--seed", type=int, default=7)
    p.add_argument("--kill-at", type=int, metavar="STEP", help="a rank kills itself, once, with SIGKILL")
    p.add_argument("--kill-when", choices=KILL_WHEN, default="step", help="in the middle, or after its save")
    p.add_argument("--kill-rank", type=int, default=-1, help="which one; default: the last")
    p.add_argument("--losses", metavar="FILE", help="exact losses, and at the end the SHA-256 of states")
    p.add_argument("--checkpoint", default="cairn", metavar="WAY[,WAY...]",
                   help="cairn, torch, dcp-async, dcp-async-kept; several take turns. Only Cairn's resume")
    p.add_argument("--directory", default="checkpoints", help="where the ways of PyTorch save (%(default)s)")
    p.add_argument("--stalls", metavar="FILE", help="how long each save held up each rank, as JSON")
    return p.parse_args()


def main() -> None:
    a = arguments()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    world = World.join(a.device)
    # Where ranks have the same model they divide it among themselves: each copies and stores a share.
    same = (lambda name: not name.startswith("own.")) if a.parallel == "ddp" else False
    with cairn.Checkpointer(a.job, rank=world.rank, world_size=world.size, replicated=same) as checkpointer:
        train(a, world, checkpointer)
    if dist.is_initialized():
        dist.destroy_process_group()
        # With torch 2.13 on a busy machine gloo may still be ending threads, and the interpreter's way out then aborts
        # ("terminate called without an active exception"), also where nothing of Cairn is open: so without it.
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
