"""FST: training from scratch with 2:4 weights and gradients, and a dense end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lowdim.core.settings import count, share, within
from lowdim.train.nm.base import FromScratch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FST(FromScratch):
    """2:4 along both sides of every feed-forward matrix, gradients 2:4 along the tokens, and a dense end.

    The model computes with W * M, M the transposable mask of the largest magnitudes, found in every 4 x 4 tile among
    all 90 (`lowdim.train.nm.transposable`) and anew every ``every`` steps. The gradient of W is S(dY)^T X, S an
    unbiased draw of two of every four tokens; ``decay`` * (1 - M) * W is added to it, after clipping and before the
    optimizer, so that Adam normalises it. The last ``tail`` of the steps are dense.

    Paper: "Accelerating Transformer Pre-training with 2:4 Sparsity", ICML 2024, arXiv 2404.01847.

    Args:
        every: optimizer steps between two choices of masks.
        decay: lambda of the masked decay; 6e-5 to 2e-4 for GPT-2. Its right size shows in how many masks flip.
        tail: share of the steps, at the end, that are dense.
        mvue: sparsify gradients along the tokens.
        greedy: choose masks by going through each tile by magnitude, as the kernel in torch does.

    Example:
        >>> FST(tail=0.5).dense(4, 8), FST(tail=0.5).dense(5, 8)
        (False, True)
    """

    tile: ClassVar[int] = 4
    every: int = count(40)
    decay: float = within(6e-5, least=0)
    tail: float = share(1 / 6)
    mvue: bool = True
    greedy: bool = False

    def mask(self, weight: Tensor) -> Tensor:
        """Return the transposable mask."""
        from lowdim.train.nm.transposable import transposable  # which needs torch

        return transposable(weight, self.greedy)
