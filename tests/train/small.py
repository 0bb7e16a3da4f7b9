"""Small networks, data and loops for the tests of sparse training."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowdim.train import SparseTraining, Static
from lowdim.train.ride import Ride, Rider
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


class Reader(nn.Module):
    """Reads the rows of an image one after another."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 12, batch_first=True), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.lstm(x[:, 0])[0][:, -1])
        return out


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


class Counter(Rider):
    """Counts the optimizer steps it sees, before and after."""

    def __init__(self, model: nn.Module, optimizer: Any, total_steps: int, start: int = 0) -> None:
        self.total_steps, self.before, self.after = total_steps, start, start
        self._ride = Ride.board(optimizer, self)

    def gradients(self, step: int) -> bool:
        self.before += 1
        return False

    def stepped(self, step: int) -> None:
        self.after += 1

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "before": self.before, "after": self.after}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step, self.before, self.after = state["step"], state["before"], state["after"]

    def remove(self) -> None:
        self._ride.leave(self)
