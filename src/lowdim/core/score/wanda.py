"""Wanda: the size of the weight times the size of its input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lowdim.core.errors import clash
from lowdim.core.lazy import torch
from lowdim.core.score.base import ColumnScore

if TYPE_CHECKING:
    from torch import Tensor

    from lowdim.core.choices import Choices
    from lowdim.core.statistics import InputStatistics


@dataclass(frozen=True)
class Wanda(ColumnScore):
    """S_ij = |W_ij| * sqrt(mean_t X_tj^2), compared within each output row.

    The paper takes the norm of X_j over all tokens; the root of the mean square differs from it by one factor
    per layer, which no mask sees, and can be compared between layers.

    ``variant`` is the paper's appendix: all rows lose the same share of their total score instead of the same number of
    weights. The score becomes the share of its row's total that weight ij and all smaller ones hold together, and the
    layer is compared as a whole: the end point of the paper's bisection, with an exact count.

    Paper: "A Simple and Effective Pruning Approach for Large Language Models", arXiv 2306.11695.

    Example:
        >>> import torch
        >>> from lowdim.core.score import Evidence
        >>> from lowdim.core.statistics import InputStatistics
        >>> stats = InputStatistics(2, Wanda.needs)
        >>> stats.add(torch.tensor([[3.0, 1.0], [3.0, -1.0]]))
        >>> Wanda().scores(torch.tensor([[1.0, -2.0]]), Evidence(stats))
        tensor([[3., 2.]])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"square"})

    variant: bool = False

    @property
    def default_group(self) -> str:
        """The row; the whole matrix for the variant."""
        return "matrix" if self.variant else "row"

    @property
    def in_own_group(self) -> bool:
        """The variant compares shares of rows, over the matrix."""
        return self.variant

    def check(self, recipe: Choices) -> None:
        """Refuse what the variant cannot be combined with: whole units, and rows that keep the same number."""
        if self.variant and not recipe.pattern.compares:
            raise clash(
                "score.variant=true",
                f"pattern={recipe.pattern}",
                "the variant lets rows lose different numbers of single weights",
                "Choose score.variant=false, or pattern=unstructured",
            )
        if self.variant and recipe.pattern.compares == "row":
            raise clash(
                "score.variant=true",
                "pattern.group=row",
                "the variant lets rows lose different numbers of weights",
                "Choose pattern.group=matrix, or score.variant=false",
            )

    def column_scale(self, stats: InputStatistics | None) -> Tensor:
        """Return the root mean square of each input, fp32 [in]."""
        return self._required(stats).mean_square().sqrt_()

    def scaled(self, weight: Tensor, scale: Tensor | None) -> Tensor:
        """Return |W| * scale, or for the variant the cumulative share within the row (fp64)."""
        scores = super().scaled(weight, scale)
        return _cumulative_share(scores) if self.variant else scores


def _cumulative_share(scores: Tensor) -> Tensor:
    """Replace each score by the share of its row's sum held by it and all that rank below it."""
    # sorted downwards and summed from the far end, so that of equal scores the leftmost ranks highest
    order = scores.sort(dim=1, descending=True, stable=True)
    upward = order.values.double().flip(1).cumsum(1)
    share = upward / upward[:, -1:].clamp_min(torch.finfo(torch.float64).tiny)
    return torch.zeros_like(share).scatter_(1, order.indices, share.flip(1))
