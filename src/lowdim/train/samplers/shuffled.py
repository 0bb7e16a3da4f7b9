"""Every sample once an epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lowdim.core.lazy import torch
from lowdim.train.objectives.base import Memory, Samples
from lowdim.train.samplers.base import Sampler

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class Shuffled(Sampler):
    """Every sample once an epoch, in an order drawn for the epoch.

    Example:
        >>> import torch
        >>> crowd = Samples(torch.zeros(4, 1), torch.zeros(4), 1)
        >>> Shuffled().order(crowd, {}, 0, 1, torch.Generator().manual_seed(0)).sort().values
        tensor([0, 1, 2, 3])
    """

    even: ClassVar[bool] = True

    def order(self, samples: Samples, memory: Memory, epoch: int, epochs: int, draw: Generator) -> Tensor:
        """Return a permutation of the rows."""
        return torch.randperm(len(samples), generator=draw)
