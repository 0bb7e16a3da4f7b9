"""Refit: the kept weights that minimise the layer's squared output error, for a given mask."""

from __future__ import annotations

from dataclasses import dataclass

from lowdim.core.errors import RecipeError


@dataclass(frozen=True)
class Refit:
    """Solve, row by row, the least-squares problem over the kept weights.

    Args:
        damping: share of the Hessian's mean diagonal that is added to its diagonal; above 0.
        iterations: most iterations of the solver.
        tolerance: share of its target to which a row's residual must shrink; the layer's error is then off by about the
            square of it. 0 runs every iteration.

    Raises:
        RecipeError: a setting is out of its range.
    """

    damping: float = 0.01
    iterations: int = 100
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        if not 0 < self.damping < float("inf"):
            raise RecipeError(f"damping must be a positive number, got {self.damping}. Try 0.01.")
        if self.iterations < 1:
            raise RecipeError(f"iterations must be at least 1, got {self.iterations}. Try 100.")
        if not 0 <= self.tolerance < 1:
            raise RecipeError(f"tolerance must lie in [0, 1), got {self.tolerance}. Try 1e-4.")
