"""Samples drawn with replacement, those of small groups or classes more often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lowdim.core.lazy import torch
from lowdim.core.settings import share
from lowdim.train.objectives.base import Memory, Samples
from lowdim.train.samplers.base import Sampler

if TYPE_CHECKING:
    from torch import Generator, Tensor


def weighted_rows(weights: Tensor, count: int, draw: Generator) -> Tensor:
    """Return ``count`` rows drawn with replacement, each with a probability in proportion to its weight.

    Example:
        >>> import torch
        >>> weighted_rows(torch.tensor([0.0, 1.0]), 3, torch.Generator().manual_seed(0))
        tensor([1, 1, 1])
    """
    sums = weights.double().cumsum(0)
    points = torch.rand(count, dtype=torch.float64, generator=draw) * sums[-1]
    return torch.searchsorted(sums, points, right=True).clamp_max(len(weights) - 1)


@dataclass(frozen=True)
class WeightedSampler(Sampler):
    """Draws as many samples as there are, with replacement, with probability p_i in proportion to n_{g(i)}^(-power).

    ``power`` 1 makes every group, or class, equally frequent in expectation; 0 draws all samples alike.

    Args:
        by: whether g is the group or the class.
        power: of the inverse frequency.

    Example:
        >>> import torch
        >>> crowd = Samples(torch.zeros(4, 1), torch.tensor([0, 0, 0, 1]), 2)
        >>> rows = WeightedSampler(by="class").order(crowd, {}, 0, 1, torch.Generator().manual_seed(0))
        >>> rows.shape
        torch.Size([4])
    """

    by: Literal["group", "class"] = "group"
    power: float = share(1.0)

    @property
    def requires(self) -> frozenset[str]:
        """Groups, where samples are drawn by them."""
        return frozenset({"groups"}) if self.by == "group" else frozenset()

    def order(self, samples: Samples, memory: Memory, epoch: int, epochs: int, draw: Generator) -> Tensor:
        """Return the rows drawn."""
        kinds = samples.index if self.by == "group" else samples.y
        return weighted_rows(torch.bincount(kinds)[kinds] ** -self.power, len(samples), draw)
