"""What every pattern answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lowdim.core.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Pattern(ABC):
    """Which weights stand or fall together, and which masks of a layer are legal.

    ``joint`` patterns choose the masks of a whole decoder block at once and have no mask for a single layer.
    """

    joint: ClassVar[bool] = False

    def check_recipe(self, sparsity: float | None) -> float:
        """Return the target sparsity a recipe means with this pattern.

        Raises:
            RecipeError: the sparsity is missing, out of range, or contradicts the pattern.
        """
        if sparsity is None:
            raise RecipeError(f"pattern {self} needs a sparsity, such as 0.5 (the share of zeros)")
        if not 0.0 <= sparsity < 1.0:
            hint = f"; did you mean {sparsity / 100:g}?" if 1.0 <= sparsity < 100.0 else ""
            raise RecipeError(
                f"sparsity must be at least 0 and below 1 (the share of zeros); got {sparsity}{hint}"
            )
        return float(sparsity)

    def resolve(self, group: str) -> Pattern:
        """Return the pattern with an open comparison group set to ``group``; most patterns have none."""
        return self

    def at(self, sparsity: float) -> Pattern:
        """Return the pattern for a layer that was allocated ``sparsity``."""
        return self

    @abstractmethod
    def check_shape(self, name: str, rows: int, cols: int) -> None:
        """Refuse a layer the pattern cannot cover.

        Raises:
            PatternError: names the layer, its size and the remedy.
        """

    @property
    @abstractmethod
    def unit_size(self) -> int:
        """Weights in the smallest change of a mask's count."""

    def units(self, rows: int, cols: int) -> int:
        """Return how many units a [rows, cols] weight has."""
        return rows * cols // self.unit_size

    @abstractmethod
    def mask(self, scores: Tensor, keep: int) -> Tensor:
        """Keep the best units of one layer.

        Args:
            scores: [rows, cols], larger is more worth keeping.
            keep: weights to keep, rounded to whole units.

        Returns:
            bool [rows, cols], True = kept, with exactly that many True.

        Raises:
            NumericalError: a score is NaN.
        """
