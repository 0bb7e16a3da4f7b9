"""What every loss of preferences answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from lowdim.core.settings import Settings, within

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Preference(Settings, ABC):
    """A loss of the log-ratio of a pair, h = (log p(c) - log p(r)) - (log q(c) - log q(r)).

    c and r are the chosen and the rejected answer, p the model that is trained, q the reference: the model as it was
    before. Log-probabilities are sums over the answer's tokens.

    Args:
        beta: how much a step away from the reference costs; the implicit reward of an answer is beta log(p / q).
    """

    knows_ties: ClassVar[bool] = False
    """Whether pairs of which neither is preferred have a loss of their own."""

    beta: float = within(0.1, above=0)

    @abstractmethod
    def losses(self, ratio: Tensor, tie: Tensor) -> Tensor:
        """Return the loss of every pair.

        Args:
            ratio: h, fp32 ``[pairs]``.
            tie: whether neither is preferred, bool ``[pairs]``.
        """

    @property
    def margin(self) -> float:
        """How far apart, in beta h, two answers are before one of them counts as preferred."""
        return 0.0

    @property
    def drops_ties(self) -> bool:
        """Whether pairs of which neither is preferred are left out of training."""
        return not self.knows_ties

    def check_ties(self, ties: int) -> None:
        """Refuse data with so many ties, where there is no loss for them.

        Raises:
            RecipeError: says what to set.
        """

    def decided(self, ratio: Tensor) -> Tensor:
        """Return 1 where the model prefers the chosen answer, -1 where the rejected one, 0 where neither."""
        reward = self.beta * ratio
        return (reward > self.margin).int() - (reward < -self.margin).int()


@dataclass(frozen=True)
class Strict(Preference):
    """A loss of preferences alone.

    Args:
        ties: what becomes of pairs that are ties, for which there is no loss: "drop" leaves them out of training,
            "prefer" takes their first answer for the preferred one.
    """

    ties: Literal["drop", "prefer"] = "drop"

    @property
    def drops_ties(self) -> bool:
        """Whether ties are left out."""
        return self.ties == "drop"
