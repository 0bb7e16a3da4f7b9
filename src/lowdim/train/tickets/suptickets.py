"""Sup-tickets: cheap tickets from the end of one sparse run, superposed into one network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lowdim.core.errors import RecipeError
from lowdim.merge.combine import kept_count, running_average
from lowdim.models.ticket import Ticket
from lowdim.train.tickets.plan import Phase, Plan, Segment, constant, present

_AVERAGES = ("mean", "pruned-mean", "moving")


@dataclass(frozen=True)
class SupTickets:
    """Ordinary sparse training, then short cycles at a small rate, each of which gives a ticket; the tickets' mean.

    The last floor(share * T / cycle) * cycle epochs of T are cycles. At the start of each one share ``shake`` of the
    weights is dropped and grown (and masks rest otherwise: give the method ``until=sup.until(epochs)``); the rate goes
    from ``low`` to ``high`` and back, linearly. Tickets are the weights at the end of ordinary training and of each
    cycle. Their superposition has the union of the masks; the largest weights over all layers stay, exactly as many
    as one ticket has, and norm statistics are measured again (``refresh_norm``). Training goes on from each cycle's
    own weights, never from the mean.

    Attributes:
        share: r, the share of the run spent in cycles.
        cycle: C, epochs of one cycle.
        shake: share of each layer's active weights replaced at the start of a cycle.
        low: factor on the base learning rate at the ends of a cycle (the paper's 0.001 of 0.1).
        high: factor in the middle of a cycle (the paper's 0.005 of 0.1).
        milestones: shares of the ordinary training after which its rate is divided by ten.
        average: "mean", the mean of all tickets (the paper's CAA); "pruned-mean", the running mean pruned after every
            ticket, as in the code behind the published numbers; "moving", where each new ticket weighs ``factor``
            (the paper's CIMA).
        factor: weight of the new ticket in the moving average; read by "moving" alone.

    Paper: "Superposing Many Tickets into One: A Performance Booster for Sparse Neural Network Training",
    arXiv 2205.15322.

    Example:
        >>> plan = SupTickets().plan(250)
        >>> [(phase.name, phase.start, phase.end) for phase in plan.phases]
        [('normal', 0, 226), ('cycle 0', 226, 234), ('cycle 1', 234, 242), ('cycle 2', 242, 250)]
        >>> [round(plan.lr_factor(epoch), 4) for epoch in (226, 230, 232, 234)]
        [0.01, 0.05, 0.03, 0.01]
    """

    share: float = 0.1
    cycle: int = 8
    shake: float = 0.5
    low: float = 0.01
    high: float = 0.05
    milestones: tuple[float, ...] = (0.5, 0.75)
    average: str = "mean"
    factor: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise RecipeError(f"share must be between 0 and 1; got {self.share}")
        if self.cycle < 1:
            raise RecipeError(f"cycle must be at least one epoch; got {self.cycle}")
        if not 0 <= self.shake < 1:
            raise RecipeError(f"shake must be in [0, 1); got {self.shake}")
        if list(self.milestones) != sorted(self.milestones) or not all(0 < m < 1 for m in self.milestones):
            raise RecipeError(f"milestones must rise between 0 and 1; got {self.milestones}")
        if self.average not in _AVERAGES:
            raise RecipeError(f"average must be one of {', '.join(_AVERAGES)}; got {self.average!r}")
        if not 0 < self.factor <= 1:
            raise RecipeError(f"factor must be in (0, 1]; got {self.factor}")

    def plan(self, epochs: int, steps_per_epoch: int = 1) -> Plan:
        """Lay the run out in optimizer steps.

        Args:
            epochs: T, all of them.
            steps_per_epoch: optimizer steps in one epoch.

        Raises:
            RecipeError: the share holds no whole cycle.
        """
        # the product of a short decimal and an integer may fall just short of the integer it stands for
        count = int(self.share * epochs / self.cycle + 1e-9)
        if not count:
            raise RecipeError(
                f"share={self.share} of {epochs} epochs holds no cycle of {self.cycle} epochs; shorten cycle or "
                "raise share"
            )
        length, total = self.cycle * steps_per_epoch, epochs * steps_per_epoch
        normal = total - count * length
        edges = [0, *(int(share * normal) for share in self.milestones), normal]
        rate = [constant(edges[i], edges[i + 1], 0.1**i) for i in range(len(edges) - 1)]
        phases = [Phase("normal", 0, normal, pick="last")]
        for index in range(count):
            start = normal + index * length
            phases.append(Phase(f"cycle {index}", start, start + length, self.shake, "last"))
            rate += _triangle(start, length, self.low, self.high)
        return Plan(tuple(phases), present(rate))

    def until(self, epochs: int) -> float:
        """Return the share of the run after which the method's own mask updates stop: give it to the method.

        Example:
            >>> SupTickets().until(250)
            0.904
        """
        return self.plan(epochs).phases[0].end / epochs

    def superpose(self, tickets: Sequence[Ticket], *, sparsity: float | None = None) -> Ticket:
        """Average tickets and prune the average, globally by magnitude, to an exact number of weights.

        The result's norm statistics are an average too and mean nothing: write it into a model and call
        ``refresh_norm`` before use.

        Args:
            tickets: in the order of their making, such as ``collector.tickets``.
            sparsity: of the result; that of the tickets if not given.

        Raises:
            LowdimError: the tickets do not fit together, or differ in sparsity and none is given.
        """
        keep = kept_count(tickets, sparsity)
        others = range(1, len(tickets))
        factors = [self.factor if self.average == "moving" else 1 / (k + 1) for k in others]
        return running_average(tickets, factors, keep, prune_each=self.average == "pruned-mean")


def _triangle(start: int, length: int, low: float, high: float) -> list[Segment]:
    """Return the rate of one cycle; one of odd length peaks between two steps."""
    if length % 2 == 0:
        middle = start + length // 2
        return [Segment(start, middle, low, high), Segment(middle, start + length, high, low)]
    return [
        constant(start + i, start + i + 1, low + (high - low) * (1 - abs(1 - 2 * i / length)))
        for i in range(length)
    ]
