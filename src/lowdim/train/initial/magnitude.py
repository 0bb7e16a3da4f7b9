"""Magnitude pruning: the largest weights stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lowdim.core.allocation.shapes import resolve
from lowdim.train.initial.base import Scored, Start, keep_counted, shapes_of

if TYPE_CHECKING:
    from torch import Tensor, nn

Scope = Literal["global", "layer"]


@dataclass(frozen=True)
class Magnitude(Scored):
    """Score |w|: of an untrained network little more than its initial scale, of a trained one the usual rule.

    Args:
        scope: "global" compares all layers' weights with each other; "layer" gives each layer the same
            sparsity and compares within it.

    Paper: "Learning both Weights and Connections for Efficient Neural Networks", arXiv 1506.02626.
    """

    scope: Scope = "global"

    def scores(self, start: Start) -> dict[str, Tensor]:
        """Return |w|."""
        return {name: weight.detach().abs() for name, weight in start.weights.items()}

    def choose(self, start: Start, sparsity: float) -> dict[str, Tensor]:
        """Return the masks."""
        if self.scope == "global":
            return super().choose(start, sparsity)
        return keep_counted(self.scores(start), resolve("uniform", shapes_of(start.weights), sparsity))


def magnitude(
    model: nn.Module,
    *,
    sparsity: float,
    scope: Scope = "global",
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """Keep the largest weights; see `Magnitude`, and `Initialisation.masks` for what is common to all.

    Example:
        >>> from torch import nn
        >>> int(magnitude(nn.Linear(8, 8), sparsity=0.75)["weight"].sum())
        16
    """
    return Magnitude(scope).masks(model, sparsity=sparsity, include=include, exclude=exclude)
