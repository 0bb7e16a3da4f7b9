"""FreeTickets: an ensemble of sparse networks for the price of one dense training, or less."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from lowdim.core.errors import RecipeError
from lowdim.core.lazy import torch
from lowdim.core.settings import Settings, count, within
from lowdim.models.ticket import Ticket
from lowdim.train.tickets.plan import Phase, TicketPlan, constant, present


@dataclass(frozen=True)
class FreeTickets(Settings):
    """One exploration, then M refinements of equal length; between refinements most connections are replaced.

    With T steps, T_e = explore * T and L = (T - T_e) / M (the paper's efficient ensemble, EDST):

    - steps 0 .. T_e: the base learning rate, dynamic sparse training at its ordinary pace;
    - refinement i = 0 .. M - 1, steps T_e + i L .. T_e + (i + 1) L: rate times ``refine`` in its first half and
      times ``final`` in its second; the weights of best validation score inside it are ticket i;
    - before each refinement but the first, one drop-and-grow of the share ``shake`` of each layer's weights.

    Prediction is the mean of the tickets' probabilities (``ensemble``). For the other form of the paper, M
    independent runs, see ``independent_tickets``.

    Attributes:
        tickets: M, refinements and so tickets.
        explore: share of the steps before the first refinement; the paper's 150 of 450 epochs. 0 leaves it out.
        shake: zeta_global, the share of active weights replaced between refinements. Two masks a shake apart have an
            intersection over union of at least (1 - shake) / (1 + shake).
        refine: factor on the base learning rate in the first half of a refinement.
        final: factor on the base learning rate in its second half.

    Paper: "Deep Ensembling with No Overhead for either Training or Testing: The All-Round Blessings of Dynamic
    Sparsity", arXiv 2106.14568.

    Example:
        >>> plan = FreeTickets().plan(450)
        >>> [(phase.name, phase.start, phase.shake) for phase in plan.phases]
        [('explore', 0, 0.0), ('refine 0', 150, 0.0), ('refine 1', 250, 0.8), ('refine 2', 350, 0.8)]
        >>> [plan.lr_factor(epoch) for epoch in (149, 150, 199, 200, 250)]
        [1.0, 0.1, 0.1, 0.01, 0.1]
    """

    tickets: int = count(3)
    explore: float = within(1 / 3, least=0, below=1)
    shake: float = within(0.8, least=0, below=1)
    refine: float = within(0.1, above=0)
    final: float = within(0.01, above=0)

    def plan(self, total_steps: int) -> TicketPlan:
        """Lay the phases out over a run.

        Args:
            total_steps: optimizer steps of the whole run (any unit works for ``lr_factor`` alone).

        Raises:
            RecipeError: fewer than two steps per refinement.
        """
        explored = round(self.explore * total_steps)
        left, refinements = total_steps - explored, self.tickets
        if left < 2 * refinements:
            raise RecipeError(f"total_steps is too small: {left} steps after exploration for {refinements} refinements")
        # half refinements, rounded up as the published runs were
        edges = [explored - (-half * left // (2 * refinements)) for half in range(2 * refinements + 1)]
        phases = [Phase("explore", 0, explored)] if explored else []
        rate = [constant(0, explored, 1.0)]
        for index in range(refinements):
            start, middle, end = edges[2 * index : 2 * index + 3]
            phases.append(Phase(f"refine {index}", start, end, self.shake if index else 0.0, "best"))
            rate += [constant(start, middle, self.refine), constant(middle, end, self.final)]
        return TicketPlan(tuple(phases), present(rate))


def independent_tickets(
    run: Callable[[int], tuple[torch.nn.Module, Mapping[str, torch.Tensor]]], seeds: Iterable[int]
) -> tuple[Ticket, ...]:
    """Train one sparse network per seed and keep each as a ticket: the paper's DST ensemble.

    Args:
        run: trains from scratch with a seed (of initialisation, masks and data order) and returns the model and its
            masks.
        seeds: one per member.
    """
    return tuple(Ticket.of(*run(seed)) for seed in seeds)
