"""Lottery tickets: iterative magnitude pruning with rewinding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowdim.core.settings import Settings, count, within
from lowdim.train.initial.magnitude import Scope

if TYPE_CHECKING:
    from torch import nn

    from lowdim.train.initial.imp import IMP


@dataclass(frozen=True)
class LotteryTickets(Settings):
    """Train, prune a share of the weights that are left by magnitude, put the rest back, and again.

    After round r, round(N * (1 - rate) ** r) of N weights are left, exactly. They start again from their initial
    values, or from those of an early step of the first training ("rewinding").

    Args:
        rate: share of the remaining weights that each round prunes.
        rounds: times to prune; the training before the first is dense. 19 rounds at 0.2 leave 1.44%.
        scope: "global" compares all layers' weights with each other; "layer" prunes the same share of each.

    Paper: "The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks", arXiv 1803.03635; rewinding to an
    early step: "Linear Mode Connectivity and the Lottery Ticket Hypothesis", arXiv 1912.05671.

    Example:
        >>> [LotteryTickets(rate=0.2).kept(100, r) for r in range(5)]
        [100, 80, 64, 51, 41]
    """

    rate: float = within(0.2, above=0, below=1, why="the share pruned per round")
    rounds: int = count(19)
    scope: Scope = "global"

    def kept(self, size: int, done: int) -> int:
        """Return how many of ``size`` weights are left after ``done`` rounds of pruning, at least one."""
        return max(min(size, 1), round(size * (1.0 - self.rate) ** done))

    def start(
        self, model: nn.Module, include: Sequence[str] | None = None, exclude: Sequence[str] | None = None
    ) -> IMP:
        """Return the rounds of a network, which must be as it was initialised; see `IMP`."""
        from lowdim.train.initial.imp import IMP

        return IMP(
            model, rate=self.rate, rounds=self.rounds, scope=self.scope, include=include, exclude=exclude
        )
