"""Sup-tickets: cheap tickets from the end of one sparse run, superposed into one network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lowdim.core.errors import RecipeError
from lowdim.core.settings import count, within
from lowdim.merge.suptickets import Superposition
from lowdim.models.ticket import Ticket
from lowdim.train.tickets.plan import Phase, Segment, TicketPlan, constant, present


@dataclass(frozen=True)
class SupTickets(Superposition):
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
        average: how tickets become one; see `lowdim.merge.suptickets.Superposition`.
        factor: weight of the new ticket in the moving average.

    Paper: "Superposing Many Tickets into One: A Performance Booster for Sparse Neural Network Training",
    arXiv 2205.15322.

    Example:
        >>> plan = SupTickets().plan(250)
        >>> [(phase.name, phase.start, phase.end) for phase in plan.phases]
        [('normal', 0, 226), ('cycle 0', 226, 234), ('cycle 1', 234, 242), ('cycle 2', 242, 250)]
        >>> [round(plan.lr_factor(epoch), 4) for epoch in (226, 230, 232, 234)]
        [0.01, 0.05, 0.03, 0.01]
    """

    share: float = within(0.1, above=0, below=1)
    cycle: int = count(8)
    shake: float = within(0.5, least=0, below=1)
    low: float = 0.01
    high: float = 0.05
    milestones: tuple[float, ...] = (0.5, 0.75)

    def __post_init__(self) -> None:
        super().__post_init__()
        if list(self.milestones) != sorted(self.milestones) or not all(0 < m < 1 for m in self.milestones):
            raise RecipeError(f"milestones must rise between 0 and 1; got {self.milestones}")

    def plan(self, epochs: int, steps_per_epoch: int = 1) -> TicketPlan:
        """Lay the run out in optimizer steps.

        Args:
            epochs: T, all of them.
            steps_per_epoch: optimizer steps in one epoch.

        Raises:
            RecipeError: the share holds no whole cycle.
        """
        # the product of a short decimal and an integer may fall just short of the integer it stands for
        cycles = int(self.share * epochs / self.cycle + 1e-9)
        if not cycles:
            raise RecipeError(
                f"share={self.share} of {epochs} epochs holds no cycle of {self.cycle} epochs; shorten cycle or "
                "raise share"
            )
        length, total = self.cycle * steps_per_epoch, epochs * steps_per_epoch
        normal = total - cycles * length
        edges = [0, *(int(share * normal) for share in self.milestones), normal]
        rate = [constant(edges[i], edges[i + 1], 0.1**i) for i in range(len(edges) - 1)]
        phases = [Phase("normal", 0, normal, pick="last")]
        for index in range(cycles):
            start = normal + index * length
            phases.append(Phase(f"cycle {index}", start, start + length, self.shake, "last"))
            rate += _triangle(start, length, self.low, self.high)
        return TicketPlan(tuple(phases), present(rate))

    def until(self, epochs: int) -> float:
        """Return the share of the run after which the method's own mask updates stop: give it to the method.

        Example:
            >>> SupTickets().until(250)
            0.904
        """
        return self.plan(epochs).phases[0].end / epochs

    def superpose(self, tickets: Sequence[Ticket], *, sparsity: float | None = None) -> Ticket:
        """Average tickets, such as ``collector.tickets``, and prune the average; see `Superposition.merge`."""
        return self.merge(tickets, sparsity=sparsity)


def _triangle(start: int, length: int, low: float, high: float) -> list[Segment]:
    """Return the rate of one cycle; one of odd length peaks between two steps."""
    if length % 2 == 0:
        middle = start + length // 2
        return [Segment(start, middle, low, high), Segment(middle, start + length, high, low)]
    return [
        constant(start + i, start + i + 1, low + (high - low) * (1 - abs(1 - 2 * i / length))) for i in range(length)
    ]
