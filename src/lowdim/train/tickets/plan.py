"""Phases of a training run as data: when the rate changes, when masks are shaken, which weights become tickets."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from lowdim.core.errors import LowdimError


@dataclass(frozen=True)
class Phase:
    """A stretch of optimizer steps.

    Attributes:
        name: such as "explore" or "cycle 2".
        start: steps done when it begins.
        end: steps done when it ends; weights after t steps belong to it when start < t <= end.
        shake: share of each layer's active weights dropped and grown once, at its first step; 0 for none.
        pick: which weights become its ticket: "none", "best" validation score, or "last".
    """

    name: str
    start: int
    end: int
    shake: float = 0.0
    pick: str = "none"


@dataclass(frozen=True)
class Segment:
    """A straight piece of the learning rate: from ``first`` at step ``start`` towards ``last`` at step ``end``."""

    start: int
    end: int
    first: float
    last: float


@dataclass(frozen=True)
class TicketPlan:
    """What happens at which optimizer step of a run; made by ``FreeTickets.plan`` and ``SupTickets.plan``.

    Give ``lr_factor`` to ``torch.optim.lr_scheduler.LambdaLR`` (stepped after each optimizer step) and the plan to
    ``TicketCollector``.
    """

    phases: tuple[Phase, ...]
    rate: tuple[Segment, ...]

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.phases[-1].end

    def phase(self, step: int) -> Phase:
        """Return the phase of the optimizer step with index ``step`` (0 is the first); the last one after the end."""
        return self.phases[_index([phase.start for phase in self.phases], step)]

    def lr_factor(self, step: int) -> float:
        """Return the factor on the base learning rate for the optimizer step with index ``step`` (0 is the first)."""
        piece = self.rate[_index([piece.start for piece in self.rate], step)]
        done = min((step - piece.start) / (piece.end - piece.start), 1.0)
        return piece.first + (piece.last - piece.first) * done


def _index(starts: list[int], step: int) -> int:
    if step < 0:
        raise LowdimError(f"step counts from 0; got {step}")
    return bisect_right(starts, step) - 1


def constant(start: int, end: int, factor: float) -> Segment:
    """Return a piece on which the rate does not change."""
    return Segment(start, end, factor, factor)


def present(pieces: list[Segment]) -> tuple[Segment, ...]:
    """Return the pieces that last at least one step."""
    return tuple(piece for piece in pieces if piece.end > piece.start)
