"""Lottery Pools: the by-products of iterative pruning, interpolated greedily into one better ticket."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lowdim.core.errors import LowdimError, RecipeError
from lowdim.core.lazy import torch
from lowdim.core.settings import count
from lowdim.merge.base import Merger
from lowdim.merge.combine import blend, check, running_average
from lowdim.merge.trial import Validate, refreshed, validated, value
from lowdim.models.norms import Forward
from lowdim.models.ticket import Ticket, borrowed


@dataclass(frozen=True)
class Trial:
    """One combination that was tried.

    Attributes:
        candidate: index of the ticket that was mixed in.
        coefficient: its weight.
        score: validation score of the result.
        accepted: whether the search went on from it.
    """

    candidate: int
    coefficient: float
    score: float
    accepted: bool


@dataclass(frozen=True, eq=False)
class Pooled:
    """The outcome of a search: the ticket (with its score and norm statistics), and everything tried on the way."""

    ticket: Ticket
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class LotteryPools(Merger):
    """Greedy interpolation of tickets that lie in one basin, each step accepted by validation score alone.

    From ticket j, the others are visited by distance in pruning rounds, the denser neighbour first: j - 1, j + 1,
    j - 2, ... For each one and each coefficient a: a * theta_c + (1 - a) * current, pruned globally by magnitude to
    exactly as many weights as ticket j has, norm statistics measured again, validated. The best a becomes the current
    ticket if it beats the best score so far. The score that starts the comparison is validation too (in the published
    code it is a test accuracy).

    The tickets must be linearly connected, as those of iterative pruning with rewinding are; tickets of independent
    runs average to noise, and then the search returns ticket j.

    Attributes:
        coefficients: the weights tried for each candidate; (0.5,) is the paper's "average".
        search: how many tickets take part, the target included.

    Paper: "Lottery Pools: Winning More by Interpolating Tickets without Increasing Training or Inference Cost",
    arXiv 2208.10842.

    Example:
        >>> LotteryPools().order(target=1, tickets=5)
        (0, 2, 3, 4)
    """

    coefficients: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
    search: int = count(19)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.coefficients or not all(0 <= a <= 1 for a in self.coefficients):
            raise RecipeError(f"coefficients must be one or more numbers between 0 and 1; got {self.coefficients}")

    def order(self, target: int, tickets: int) -> tuple[int, ...]:
        """Return which tickets are mixed in, nearest round first, the denser of two equally near first.

        Raises:
            LowdimError: there is no ticket with the target's index.
        """
        if not 0 <= target < tickets:
            raise LowdimError(f"target must be the index of one of {tickets} tickets; got {target}")
        near = sorted((i for i in range(tickets) if i != target), key=lambda i: (abs(i - target), i))
        return tuple(near[: self.search - 1])

    def pool(
        self,
        model: torch.nn.Module,
        tickets: Sequence[Ticket],
        target: int,
        validate: Validate,
        *,
        batches: Iterable[Any] | None = None,
        forward: Forward | None = None,
    ) -> Pooled:
        """Search from one ticket.

        Args:
            model: of the tickets' structure; it is lent to the search and comes back as it was.
            tickets: in the order of pruning rounds, densest first.
            target: index of the ticket to improve; the result keeps as many weights as it does.
            validate: (model) -> score on validation data, higher is better. Never pass test data.
            batches: training data for ``refresh_norm``, read once per trial; needed where the model has BatchNorm.
            forward: how to call the model with one of the batches.

        Raises:
            LowdimError: the tickets do not fit together, or norm statistics cannot be measured without batches.
        """
        check(tickets)
        order = self.order(target, len(tickets))
        keep = tickets[target].masks.kept()
        trials: list[Trial] = []
        with borrowed(model):
            current = validated(model, tickets[target], validate)
            for index in order:
                best, chosen = current, -1
                for a in self.coefficients:
                    mixed = blend([tickets[index], current], [a, 1 - a], keep)
                    found = refreshed(model, mixed, validate, batches, forward)
                    if value(found) > value(best):
                        best, chosen = found, len(trials)
                    trials.append(Trial(index, a, value(found), accepted=False))
                if chosen >= 0:
                    trials[chosen] = replace(trials[chosen], accepted=True)
                current = best
        return Pooled(current, tuple(trials))

    def merge(self, states: Sequence[Ticket], base: Ticket | None = None, *, factor: float | None = None) -> Ticket:
        """Mix tickets in one after another, without validation: the paper's baselines; see `Merger`.

        Args:
            states: in the order in which they are mixed in; the average is pruned after each.
            base: where the average begins, the first of ``states`` if not given; the result keeps as many weights as
                it does.
            factor: weight of each new ticket in a moving average ("EMA"; the published runs give 0.95 to the **new**
                ticket); None weighs all tickets alike ("SWA").
        """
        pool = [*states] if base is None else [base, *states]
        check(pool)
        factors = [1 / (k + 1) if factor is None else factor for k in range(1, len(pool))]
        return running_average(pool, factors, pool[0].masks.kept(), prune_each=True)

    def average(self, tickets: Sequence[Ticket], target: int, *, factor: float | None = None) -> Ticket:
        """Merge every ticket into one of them, in the order of the search.

        Args:
            tickets: in the order of pruning rounds, densest first.
            target: index of the ticket to begin with.
            factor: see `merge`.
        """
        order = self.order(target, len(tickets))
        return self.merge([tickets[i] for i in order], tickets[target], factor=factor)
