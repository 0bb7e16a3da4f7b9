"""The collector: works beside any training loop, shakes masks and takes tickets where a plan says so."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lowdim.core.errors import LowdimError
from lowdim.models.ticket import Ticket
from lowdim.train.tickets.plan import Phase, TicketPlan

if TYPE_CHECKING:
    from lowdim.train.sparse.training import SparseTraining


class TicketCollector:
    """Take the tickets of a plan during a training loop that stays the caller's.

    Call ``step()`` after every optimizer step. Where the plan picks the best of a phase, also call
    ``offer(score)`` after each validation; a phase without offers gives its last weights.

    ```python
    plan = FreeTickets(tickets=3).plan(total_steps)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, plan.lr_factor)
    collector = TicketCollector(training, plan)
    for epoch in range(epochs):
        for x, y in loader:
            loss(model(x), y).backward()
            optimizer.step(); optimizer.zero_grad(); scheduler.step(); collector.step()
        collector.offer(accuracy(model, validation))
    result = ensemble(model, collector.tickets, test)
    ```
    """

    def __init__(self, training: SparseTraining, plan: TicketPlan) -> None:
        self.plan = plan
        self._training = training
        self._found: dict[str, Ticket] = {}
        self._seen = training.step

    @property
    def tickets(self) -> tuple[Ticket, ...]:
        """The tickets so far, one per phase that picks one, in order; that of the present phase may still change."""
        return tuple(self._found[phase.name] for phase in self.plan.phases if phase.name in self._found)

    def step(self) -> None:
        """Note one optimizer step: at the end of a phase take its last weights and ask for the next phase's shake.

        Raises:
            LowdimError: the end of a phase was passed since the last call.
        """
        now = self._training.step
        for phase in self.plan.phases:
            if self._seen < phase.end < now:
                raise LowdimError(
                    f"phase {phase.name!r} ended at step {phase.end}, now it is step {now}: call step() after every "
                    "optimizer step"
                )
            if phase.end == now > self._seen:
                self._close(phase)
        self._seen = now

    def _close(self, phase: Phase) -> None:
        if phase.pick == "last" or (phase.pick == "best" and phase.name not in self._found):
            self._take(phase, None)
        if phase.end < self.plan.total_steps:
            following = self.plan.phase(phase.end)
            if following.shake:
                self._training.shake(following.shake)

    def _take(self, phase: Phase, score: float | None) -> None:
        held = self._training
        self._found[phase.name] = Ticket.of(held.model, held.masks, score=score, step=held.step)

    def offer(self, score: float) -> bool:
        """Tell the validation score (higher is better) of the weights as they are now.

        Returns:
            Whether they are now their phase's ticket. A score that is NaN never is.
        """
        now = self._training.step
        if now == 0 or math.isnan(score):
            return False
        phase = self.plan.phase(now - 1)
        held = self._found.get(phase.name)
        if phase.pick == "last" and held is not None and held.step == now:
            self._found[phase.name] = held.scored(score)
            return True
        if phase.pick != "best" or (held is not None and held.score is not None and score <= held.score):
            return False
        self._take(phase, score)
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return the tickets and the position, for ``torch.save`` with ``weights_only`` loading."""
        return {
            "seen": self._seen,
            "tickets": {name: ticket.state_dict() for name, ticket in self._found.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a ``state_dict`` was taken; the training must be restored to the same step.

        Raises:
            LowdimError: the state has phases that this plan lacks.
        """
        unknown = set(state["tickets"]) - {phase.name for phase in self.plan.phases}
        if unknown:
            raise LowdimError(f"the state has tickets of phases {sorted(unknown)}, which this plan does not have")
        self._found = {name: Ticket.from_state_dict(held) for name, held in state["tickets"].items()}
        self._seen = state["seen"]
