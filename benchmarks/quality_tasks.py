"""What the networks of `sparse_quality.py` are trained on, and how."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowdim.core.random import generator
from lowdim.data import wiki
from lowdim.data.classification import Dataset, load
from lowdim.models.small.nets import MLP, Conv, Net

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """A network, its data and its schedule: SGD with momentum, the rate divided by 10 at 1/2 and 3/4 of the run."""

    name: str
    net: Net
    epochs: int
    rate: float = 0.1
    limit: int = 12_800
    batch: int = 128

    @property
    def steps(self) -> int:
        """Optimizer steps of a run."""
        return self.epochs * (self.limit // self.batch)

    def data(self) -> Dataset:
        """Return Fashion-MNIST, of which ``limit`` images train."""
        return fashion(self.limit)

    def model(self, seed: int) -> nn.Module:
        """Return the network as it starts."""
        return self.net.build(self.data(), seed)

    def optimizer(self, model: nn.Module) -> torch.optim.SGD:
        """Return the optimizer."""
        return torch.optim.SGD(model.parameters(), lr=self.rate, momentum=0.9, weight_decay=5e-4)

    def batches(self, seed: int, epochs: int | None = None) -> Iterator[Batch]:
        """Yield the batches of a run, in an order that the seed gives."""
        x, y = self.data().train
        for epoch in range(self.epochs if epochs is None else epochs):
            order = torch.randperm(len(y), generator=generator(seed, "order", epoch))
            for part in order.split(self.batch):
                yield x[part], y[part]

    def factor(self, step: int) -> float:
        """Return what multiplies the rate at a step."""
        share = step / self.steps
        return 1.0 if share < 0.5 else 0.1 if share < 0.75 else 0.01

    def accuracy(self, model: nn.Module, split: str = "test") -> float:
        """Return the share of right answers."""
        x, y = getattr(self.data(), split)
        model.eval()
        with torch.no_grad():
            right = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(500), y.split(500), strict=True))
        model.train()
        return right / len(y)


@cache
def fashion(limit: int) -> Dataset:
    """Return the data, read once."""
    return load("fashion-mnist", limit=limit)


TASKS = {
    "mlp": Task("mlp", MLP(hidden=(300, 100)), epochs=20),
    "conv": Task("conv", Conv(channels=(12, 24, 48)), epochs=12),
}


def train(
    task: Task,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Batch],
    factor: Callable[[int], float],
    after: Callable[[int], None] = lambda step: None,
) -> None:
    """Train in the plainest of loops; ``after`` is called with the number of steps done."""
    for step, (x, y) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = task.rate * factor(step)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        after(step + 1)


# ---------------------------------------------------------------- a small language model


class Block(nn.Module):
    """Attention and MLP, norms first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, tokens, width] to the same."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        y: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return y


class Characters(nn.Module):
    """A decoder over bytes: 2 blocks of width 128, 390,000 weights in them."""

    context = 64

    def __init__(self, width: int = 128, blocks: int = 2) -> None:
        super().__init__()
        self.embedding, self.places = nn.Embedding(256, width), nn.Embedding(self.context, width)
        self.blocks = nn.ModuleList(Block(width, 4) for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Map int64 [batch, tokens] to logits [batch, tokens, 256]."""
        x = self.embedding(ids) + self.places(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.head(self.norm(x))
        return y


@cache
def text(part: str) -> Tensor:
    """Return the bytes of the built-in Wikipedia slice: even articles train, odd ones test."""
    found = wiki.calibration_articles() if part == "train" else wiki.evaluation_articles()
    return torch.frombuffer(bytearray("\n".join(a.text for a in found).encode()), dtype=torch.uint8)


def windows(step: int, seed: int, size: int = 24) -> Tensor:
    """Return a batch of windows of the training text, int64 [size, context + 1]."""
    data = text("train")
    starts = torch.randint(len(data) - Characters.context - 1, (size,), generator=generator(seed, "text", step))
    return torch.stack([data[s : s + Characters.context + 1] for s in starts.tolist()]).long()


def bits_per_byte(model: nn.Module) -> float:
    """Return the loss on 64 KB of the test text, in bits per byte."""
    data = text("test")[: 1000 * (Characters.context + 1)].view(1000, -1).long()
    with torch.no_grad():
        losses = [F.cross_entropy(model(part[:, :-1]).flatten(0, 1), part[:, 1:].flatten()) for part in data.split(100)]
    return float(torch.stack(losses).mean()) / math.log(2)


def language_model(make: Callable[[nn.Module, Any], Any], seed: int, steps: int) -> tuple[float, Any]:
    """Train the decoder with AdamW; return bits per byte and what ``make`` returned."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Characters()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    training = make(model, optimizer)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps + 1, pct_start=0.05)
    for step in range(steps):
        ids = windows(step, seed)
        F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return bits_per_byte(model), training
