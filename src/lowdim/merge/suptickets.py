"""Superposition: the mean of tickets, pruned to the size of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from lowdim.core.settings import Moot, within
from lowdim.merge.base import Merger
from lowdim.merge.combine import kept_count, running_average
from lowdim.models.ticket import Ticket


@dataclass(frozen=True, kw_only=True)
class Superposition(Merger):
    """The mean of tickets, of which the largest weights over all layers stay, exactly as many as one ticket has.

    Attributes:
        average: "mean", the mean of all tickets (the paper's CAA); "pruned-mean", the running mean pruned after every
            ticket, as in the code behind the published numbers; "moving", where each new ticket weighs ``factor``
            (the paper's CIMA).
        factor: weight of the new ticket in the moving average.

    Paper: "Superposing Many Tickets into One: A Performance Booster for Sparse Neural Network Training",
    arXiv 2205.15322.
    """

    moot: ClassVar[Moot] = {"factor": ("average", ("mean", "pruned-mean"))}

    average: Literal["mean", "pruned-mean", "moving"] = "mean"
    factor: float = within(0.5, above=0, most=1)

    def merge(self, states: Sequence[Ticket], base: Ticket | None = None, *, sparsity: float | None = None) -> Ticket:
        """Average tickets and prune to ``sparsity``, by default that of the tickets; see `Merger`."""
        keep = kept_count(states, sparsity)
        factors = [self.factor if self.average == "moving" else 1 / (k + 1) for k in range(1, len(states))]
        return running_average(states, factors, keep, prune_each=self.average == "pruned-mean")
