"""AdaSPEC: a draft model learns the tokens that it can still learn, and leaves the others alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from lowdim.core.lazy import Lazy, torch
from lowdim.core.settings import within
from lowdim.train.drafters.base import Answers, DraftObjective
from lowdim.train.drafters.distillspec import DistillSpec

if TYPE_CHECKING:
    from lowdim.train.objectives.rows import Scratch

_rows = Lazy("lowdim.train.objectives.divergence")


@dataclass(frozen=True)
class AdaSPEC(DraftObjective):
    """Forward KL on the share k of a batch's tokens at which the draft is furthest behind a distilled reference.

        delta_i = KL(p_i || q_i) - KL(p_i || r_i),    kept: delta_i >= quantile(delta, 1 - k)
        loss = mean of KL(p_i || q_i) over the kept,  p, q, r = softmax of target, draft, reference

    A small model cannot follow a large one everywhere. Where the reference, which began as the draft did and was
    distilled on all tokens, has come closer than the draft, there is something to be learnt; the others would spend
    what the draft can hold on tokens that are rejected anyway. The quantile is interpolated and is that of the tokens
    that are computed at once. With k = 1 it is `DistillSpec`; where draft and reference are one, all tokens are kept.

    Attributes:
        keep: k, the share of tokens that count.
        over: the loss is a mean over the tokens that are "kept", as the paper writes it; over "all" it is the same sum
            divided by the number of all, as in the published training code: a rate about k times as high.

    Paper: "AdaSPEC: Selective Knowledge Distillation for Efficient Speculative Decoders", 2025, arXiv 2510.19779.

    Example:
        >>> selected(torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]), 0.4).tolist()
        [False, False, False, True, True]
    """

    asks: ClassVar[tuple[str, ...]] = ("target", "reference")

    keep: float = within(0.4, above=0, most=1)
    over: Literal["kept", "all"] = "kept"

    def reference(self) -> DraftObjective:
        """Return forward KL on all tokens."""
        return DistillSpec()

    def loss(self, said: Answers, scratch: Scratch | None = None) -> torch.Tensor:
        """Return the mean divergence over the tokens kept."""
        assert said.target is not None and said.reference is not None
        behind = _rows.divergences(said.draft, said.target, scratch=scratch)
        kept = selected(behind - _rows.divergences(said.reference, said.target, scratch=scratch), self.keep)
        loss: torch.Tensor = _rows.divergence(said.draft.rows(kept), said.target.rows(kept), scratch=scratch)
        return loss if self.over == "kept" else loss * float(kept.float().mean())


def selected(delta: torch.Tensor, share: float) -> torch.Tensor:
    """Return which tokens are kept, bool ``[n]``: those at or above the (1 - share) quantile of ``delta``, fp32.

    A batch of numbers that are none is kept whole, so that its loss says so.
    """
    return ~(delta < torch.quantile(delta.float(), 1.0 - share))
