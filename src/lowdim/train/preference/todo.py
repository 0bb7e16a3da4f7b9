"""TODO: preferences with ties."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lowdim.core.errors import RecipeError
from lowdim.core.lazy import torch
from lowdim.core.settings import within
from lowdim.train.preference.base import Preference

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TODO(Preference):
    """The likelihood of preferences and ties, two answers being a tie if their rewards lie within a margin.

    With m = beta h, h the log-ratio of a pair (see `Preference`), and a = alpha,

        P(win) = sigma(m - a),  P(loss) = sigma(-m - a),  P(tie) = (e^2a - 1) / ((1 + e^(a + m)) (1 + e^(a - m)))

    add up to 1 (the Rao-Kupper form of Bradley-Terry). A preference costs -log P(win), a tie
    -log P(tie) = -log(e^2a - 1) + log(1 + e^(a + m)) + log(1 + e^(a - m)), which is least at m = 0. At a = 0, and so
    without ties, it is DPO. The code released with the paper has a second form of the tie's loss, without the 1, which
    is no probability; it is not offered.

    Paper: "TODO: Enhancing LLM Alignment with Ternary Preferences", 2024, arXiv 2411.02442.

    Args:
        alpha: a, the margin.
        smoothing: s; a preference costs -(1 - s) log P(win) - s log P(loss).

    Example:
        >>> import torch
        >>> todo, none = TODO(beta=1.0), torch.zeros(1)
        >>> todo.losses(none, torch.tensor([False])), todo.losses(none, torch.tensor([True]))
        (tensor([0.9741]), tensor([1.4068]))
    """

    knows_ties: ClassVar[bool] = True

    beta: float = within(0.01, above=0)
    alpha: float = within(0.5, least=0)
    smoothing: float = within(0.0, least=0, below=0.5)

    @property
    def margin(self) -> float:
        """How far apart rewards are where one answer is likelier than not to be preferred: P(win) > 1/2."""
        return self.alpha

    def check_ties(self, ties: int) -> None:
        """Refuse ties where they have no probability.

        Raises:
            RecipeError: says what to set.
        """
        if ties and not self.alpha:
            raise RecipeError(
                f"preference.alpha is 0, where a tie has the probability 0, and {ties:,} pairs are ties. Take an alpha "
                "above 0, such as 0.5."
            )

    def probabilities(self, ratio: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return P(win), P(tie) and P(loss) of every pair.

        Example:
            >>> import torch
            >>> [round(float(p), 4) for p in TODO(beta=1.0).probabilities(torch.tensor(1.0))]
            [0.6225, 0.1951, 0.1824]
        """
        reward = self.beta * ratio
        win, loss = torch.sigmoid(reward - self.alpha), torch.sigmoid(-reward - self.alpha)
        sides = torch.sigmoid(self.alpha + reward) * torch.sigmoid(self.alpha - reward)
        return win, -math.expm1(-2 * self.alpha) * sides, loss

    def losses(self, ratio: Tensor, tie: Tensor) -> Tensor:
        """Return the loss of every pair."""
        reward, a, softplus = self.beta * ratio, self.alpha, torch.nn.functional.softplus
        found: Tensor = softplus(a - reward)
        if self.smoothing:
            found = (1 - self.smoothing) * found + self.smoothing * softplus(a + reward)
        if not a:
            return found
        room = 2 * a + math.log1p(-math.exp(-2 * a))  # log(e^2a - 1), for a large a too
        return torch.where(tie, softplus(a + reward) + softplus(a - reward) - room, found)
