"""Small networks, data and loops for the tests of sparse training."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowdim.train import SparseTraining, Static
from lowdim.train.sparse.method import Method


def conv_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 32),
        nn.ReLU(),
        nn.Linear(32, 4),
    )


def mlp(*sizes: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def batch(step: int, size: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(1000 * seed + step)
    return torch.randn(size, 1, 8, 8, generator=source), torch.randint(4, (size,), generator=source)


def train(model: nn.Module, optimizer: Any, steps: range, flat: bool = False) -> list[float]:
    losses = []
    for step in steps:
        x, y = batch(step)
        loss = F.cross_entropy(model(x.flatten(1) if flat else x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def sgd(model: nn.Module, **settings: Any) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), **({"lr": 0.05, "momentum": 0.9} | settings))


def one_row(weights: list[float], mask: list[int], method: Method, **settings: Any) -> tuple[nn.Linear, SparseTraining]:
    """Return a layer of one output with given weights and mask, and its training; the learning rate is 0."""
    model = nn.Linear(len(weights), 1, bias=False)
    kept = torch.tensor([mask]).bool()
    training = SparseTraining(
        model,
        torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9),
        method=method,
        masks={"weight": kept},
        **({"total_steps": 10} | settings),
    )
    with torch.no_grad():
        model.weight.copy_(torch.tensor([weights]) * kept)
    return model, training


def step_with(model: nn.Linear, training: SparseTraining, gradient: list[float]) -> list[int]:
    """Do one optimizer step with a given dense gradient; return the new mask."""
    model.weight.grad = torch.tensor([gradient], dtype=torch.float32)
    training.optimizer.step()
    return [int(bit) for bit in training.masks["weight"].flatten()]


def hold(
    sparsity: float = 0.8, model: nn.Module | None = None, **settings: Any
) -> tuple[nn.Module, Any, SparseTraining]:
    model = model or conv_net()
    optimizer = sgd(model)
    return (
        model,
        optimizer,
        SparseTraining(model, optimizer, sparsity=sparsity, **({"method": Static()} | settings)),
    )
