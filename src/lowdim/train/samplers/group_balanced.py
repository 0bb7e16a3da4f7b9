"""As many samples of every group in every stretch of an epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowdim.core.lazy import torch
from lowdim.train.objectives.base import Memory, Samples
from lowdim.train.samplers.base import Sampler

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class GroupBalanced(Sampler):
    """Takes one sample of every group in turn, so that any two groups differ by one sample at most in an epoch.

    An epoch has as many samples as there are. Each group is gone through in an order of its own, and shuffled anew when
    it is used up: a small one repeats, a large one is seen in part. Groups without samples are passed over.

    Example:
        >>> import torch
        >>> from lowdim.data.select.groups import Groups
        >>> groups = Groups(torch.tensor([0, 0, 0, 0, 0, 1]), ("large", "small"))
        >>> crowd = Samples(torch.zeros(6, 1), torch.zeros(6), classes=1, groups=groups)
        >>> rows = GroupBalanced().order(crowd, {}, 0, 1, torch.Generator().manual_seed(0))
        >>> groups.index[rows].tolist()
        [0, 1, 0, 1, 0, 1]
    """

    @property
    def requires(self) -> frozenset[str]:
        """Groups."""
        return frozenset({"groups"})

    def order(self, samples: Samples, memory: Memory, epoch: int, epochs: int, draw: Generator) -> Tensor:
        """Return the rows, group after group in turn."""
        members = [(samples.index == group).nonzero().flatten() for group in samples.index.unique()]
        turns = -(-len(samples) // len(members))
        columns = []
        for rows in members:
            rounds = [rows[torch.randperm(len(rows), generator=draw)] for _ in range(-(-turns // len(rows)))]
            columns.append(torch.cat(rounds)[:turns])
        return torch.stack(columns, 1).flatten()[: len(samples)]
