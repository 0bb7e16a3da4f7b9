"""What every pattern answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lowdim.core.errors import RecipeError
from lowdim.core.lazy import lazy
from lowdim.core.pattern.units import Shape, Units

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch")


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

    @property
    def groups_of(self) -> int:
        """Neighbouring inputs that keep a number of their own, as in N:M; 0 where there are no such groups."""
        return 0

    @abstractmethod
    def units(self, name: str, shape: Shape) -> Units:
        """Cut a weight into units.

        Args:
            name: of the weight, for messages.
            shape: [out, in, kernel...]; `Turned` serves layers that hold it as [in, out, kernel...].

        Raises:
            RecipeError: the pattern spans several weights.
            PatternError: the weight does not fall into whole units.
        """

    def quota(self, units: Units, kept: int) -> Tensor | None:
        """Return how many units each group keeps, int64 [groups]; None where units do not fall into groups.

        Groups share ``kept`` weights, the same number each (at least one), rounded.
        """
        if units.groups == 1:
            return None
        room = units.size // units.groups
        return torch.full((units.groups,), min(room, max(1, round(kept / units.groups))))

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
