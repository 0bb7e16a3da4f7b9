"""DistillSpec: a draft model learns to say what its target says, at every token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lowdim.core.lazy import Lazy, torch
from lowdim.train.drafters.base import Answers, DraftObjective

if TYPE_CHECKING:
    from lowdim.train.objectives.rows import Scratch

_rows = Lazy("lowdim.train.objectives.divergence")


@dataclass(frozen=True)
class DistillSpec(DraftObjective):
    """The mean of KL(target || draft) over all n tokens, on text that is given.

        1/n sum_i sum_v p_iv (log p_iv - log q_iv),    p, q = softmax(target), softmax(draft)

    It is the paper's off-policy form with forward KL, which AdaSPEC compares itself with; text that the draft or the
    target has written can be given as the text.

    Paper: "DistillSpec: Improving Speculative Decoding via Knowledge Distillation", 2023, arXiv 2310.08461.

    Example:
        >>> from lowdim.train.objectives.divergence import Side
        >>> target, draft = (Side(torch.tensor([row]).log()) for row in ([0.5, 0.5], [0.25, 0.75]))
        >>> round(DistillSpec().loss(Answers(draft, torch.tensor([0]), target)).item(), 4)
        0.1438
    """

    asks: ClassVar[tuple[str, ...]] = ("target",)

    def loss(self, said: Answers, scratch: Scratch | None = None) -> torch.Tensor:
        """Return the mean divergence of the draft from the target."""
        loss: torch.Tensor = _rows.divergence(said.draft, said.target, scratch=scratch)
        return loss
