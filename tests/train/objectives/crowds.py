"""Samples for objectives and samplers: small, with a bias whose groups are known."""

from __future__ import annotations

import torch

from lowdim.data.select.groups import Groups, of_classes
from lowdim.data.select.ranks import Ranks
from lowdim.train.objectives.base import Drawn, Samples


def ranks_of(rank: list[int] | torch.Tensor, y: torch.Tensor, classes: int = 2) -> Ranks:
    names = tuple(f"class {number}" for number in range(classes))
    return Ranks(torch.as_tensor(rank), y, names, data="", method="made", settings={})


def crowd(count: int = 40, conflicting: int = 4, seed: int = 0) -> Samples:
    """Two classes that a weak feature tells apart, and a strong one in all but ``conflicting`` samples."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 2
    against = torch.zeros(count, dtype=torch.bool)
    against[:conflicting] = True
    sign = 2.0 * y - 1
    x = torch.stack([sign + 0.5 * torch.randn(count, generator=draw), torch.where(against, -sign, sign) * 4], 1)
    groups = of_classes(y, against, ("a", "b"))
    rank = torch.where(against, 3, 1 + torch.arange(count) % 4 // 2)
    return Samples(x, y, 2, seed, groups, ranks_of(rank, y), against, wrong=against.clone())


def batch(samples: Samples, rows: list[int] | torch.Tensor, memory: dict | None = None) -> Drawn:
    index = torch.as_tensor(rows)
    groups = None if samples.groups is None else samples.index[index]
    return Drawn(samples.x[index], samples.y[index], index, groups, {} if memory is None else memory)


def grouped(index: list[int], names: tuple[str, ...]) -> Samples:
    y = torch.zeros(len(index), dtype=torch.int64)
    return Samples(torch.zeros(len(index), 1), y, 1, groups=Groups(torch.tensor(index), names))
