"""Magnitude pruning: the largest weights stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lowdim.core.allocation import counts_for
from lowdim.train.initial.base import Scored, Start, keep_counted, shapes_of

if TYPE_CHECKING:
    from torch import Tensor

Scope = Literal["global", "layer"]


@dataclass(frozen=True)
class Magnitude(Scored):
    """Score |w|: the usual rule for a trained network; for an untrained one little more than its initial scale.

    Args:
        scope: "global" compares all layers' weights with each other; "layer" gives each layer the same
            sparsity and compares within it.

    Paper: "Learning both Weights and Connections for Efficient Neural Networks", arXiv 1506.02626.

    Example:
        >>> from torch import nn
        >>> int(Magnitude().masks(nn.Linear(8, 8), sparsity=0.75)["weight"].sum())
        16
    """

    scope: Scope = "global"

    def scores(self, start: Start) -> dict[str, Tensor]:
        """Return |w|."""
        return {name: weight.detach().abs() for name, weight in start.weights.items()}

    def choose(self, start: Start, sparsity: float) -> dict[str, Tensor]:
        """Return the masks."""
        if self.scope == "global":
            return super().choose(start, sparsity)
        scores = start.apart(self.scores(start))
        return start.together(keep_counted(scores, counts_for(shapes_of(scores), "uniform", sparsity)))
