"""S-STE: an N:M pruning function without jumps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowdim.core.lazy import torch
from lowdim.core.pattern import NM
from lowdim.core.settings import within
from lowdim.train.nm.sr_ste import SRSTE

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SSTE(SRSTE):
    """A pruning function that is continuous: two of four shrink to zero, the others by as much, and a scale makes up.

    With t the second smallest magnitude of four inputs (the (M - N)-th of M), S(w) = sign(w) max(|w| - t, 0), and the
    model computes with beta S(W), beta = <W, S(W)> / <S(W), S(W)> of each matrix as it begins, never changed. No mask
    jumps, so that nothing needs decay, and no dense end: the model that training leaves is N:M.

    Paper: "S-STE: Continuous Pruning Function for Efficient 2:4 Sparse Pre-training", NeurIPS 2024, arXiv 2409.09099.

    Args:
        every: optimizer steps between two looks at how many masks flipped; what is computed with changes at every step.
        decay: of what is pruned, on the weights; none in the paper.
        tail: share of the steps, at the end, that are dense; none in the paper.
        mvue: sparsify gradients along the tokens, as in FST.
        pattern: N:M; 2:4 in the paper.

    Example:
        >>> weight = torch.tensor([[4.0, -3.0, 1.0, 0.5]])
        >>> round(float(SSTE().factor(weight)), 4)
        1.3846
    """

    decay: float = within(0.0, least=0)
    mvue: bool = True

    def mask(self, weight: Tensor) -> Tensor:
        """Return what S leaves: N of M, fewer where magnitudes are equal."""
        return shrunk(weight, self.groups) != 0

    def check(self, total_steps: int) -> None:
        """Refuse nothing: what is computed with changes at every step."""

    def factor(self, weight: Tensor) -> Tensor:
        """Return beta."""
        wide = weight.detach().float()
        small = shrunk(wide, self.groups)
        return (wide * small).sum() / small.square().sum().clamp_(min=torch.finfo(torch.float32).tiny)

    def shown(self, weight: Tensor, mask: Tensor, factor: Tensor) -> Tensor:
        """Return beta S(W)."""
        return (shrunk(weight, self.groups) * factor.to(weight.dtype)).add_(0.0)  # which turns -0.0 into +0.0


def shrunk(weight: Tensor, pattern: NM = NM(2, 4)) -> Tensor:  # noqa: B008
    """Return S(W), groups along the last axis.

    Example:
        >>> shrunk(torch.tensor([4.0, -3.0, 1.0, 0.5])).tolist()
        [3.0, -2.0, 0.0, 0.0]
    """
    cut = weight.detach().unflatten(-1, (-1, pattern.group))
    threshold = cut.abs().kthvalue(pattern.group - pattern.keep, dim=-1, keepdim=True).values
    found: Tensor = cut.sign() * (cut.abs() - threshold).clamp_(min=0.0)
    return found.flatten(-2)
