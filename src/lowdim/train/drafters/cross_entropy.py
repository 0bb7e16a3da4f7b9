"""Cross entropy: a draft model learns the text, and its target is not asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowdim.core.lazy import Lazy, torch
from lowdim.train.drafters.base import Answers, DraftObjective

if TYPE_CHECKING:
    from lowdim.train.objectives.rows import Scratch

_rows = Lazy("lowdim.train.objectives.divergence")


@dataclass(frozen=True)
class CrossEntropy(DraftObjective):
    """The mean of -log softmax(draft)_token over the tokens that count: ordinary fine-tuning.

    Example:
        >>> from lowdim.train.objectives.divergence import Side
        >>> said = Answers(Side(torch.tensor([[0.5, 0.25, 0.25]]).log()), torch.tensor([0]))
        >>> round(CrossEntropy().loss(said).item(), 4)
        0.6931
    """

    def loss(self, said: Answers, scratch: Scratch | None = None) -> torch.Tensor:
        """Return the mean cross entropy of the draft."""
        loss: torch.Tensor = _rows.divergence(said.draft, None, said.tokens, kl=0.0, ce=1.0, scratch=scratch)
        return loss
