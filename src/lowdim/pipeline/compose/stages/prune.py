"""Pruning as a stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

from lowdim.core.errors import RecipeError
from lowdim.core.lazy import Lazy
from lowdim.pipeline.compose.stage import GRID, MASK, RANK, Stage, Work
from lowdim.prune.recipe import Recipe

if TYPE_CHECKING:
    from lowdim.models.disk.source import Source
    from lowdim.prune import api
else:
    api = Lazy("lowdim.prune.api")

_GIVEN = ("evaluation", "seed", "device", "trust_remote_code")


@dataclass(frozen=True)
class Prune(Stage):
    """Prune the model; its zeros are to stay.

    Args:
        recipe: keys of a recipe of pruning: ``{sparsity: 0.5, method: wanda}``. What is evaluated, the seed and the
            device are the composition's.

    Example:
        >>> Prune.of({"sparsity": 0.6}).recipe["sparsity"]
        0.6
    """

    recipe: Mapping[str, Any] = field(default_factory=dict)

    adds: ClassVar[frozenset[str]] = frozenset({MASK})
    breaks: ClassVar[frozenset[str]] = frozenset({RANK})
    remedy: ClassVar[str] = "Prune without factorising, or factorise without pruning."

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Return the stage; 50% zeros where it says nothing."""
        if taken := [key for key in _GIVEN if key in values]:
            raise RecipeError(f"prune.{taken[0]} is the composition's own key. Write it beside 'stages'.")
        known = "sparsity" in values or "pattern" in values
        made = cls(dict(values) if known else {"sparsity": 0.5, **values})
        made.settings(0)
        return made

    def settings(self, seed: int, device: str = "auto", compute: str = "auto", trusted: bool = False) -> Recipe:
        """Return the recipe of pruning."""
        how = {"compute": compute, "trust_remote_code": trusted} | dict(self.recipe)
        return Recipe(**how, seed=seed, device=device, evaluation={"text": None})

    def promises(self) -> frozenset[str]:
        """Zeros, and a grid where the recipe rounds."""
        return self.adds | (frozenset({GRID}) if self.settings(0).grid is not None else frozenset())

    def check(self, held: frozenset[str]) -> None:
        """Refuse to round again what was rounded before."""
        super().check(held)
        if GRID in held & self.promises():
            raise RecipeError(
                "prune with quantize after rounding: two grids cannot both hold. Leave quantize out of prune, or the "
                "stage that rounds."
            )

    def described(self) -> dict[str, Any]:
        """The keys of the recipe as they were given."""
        return dict(self.recipe)

    def ahead(self, source: Source) -> float:
        """As `lowdim.prune.api.plan` estimates it."""
        return api.plan(str(source.path), self.settings(0, trusted=source.trusted)).seconds

    def run(self, work: Work) -> dict[str, Any]:
        """Prune from disk to disk; what was begun is gone on with."""
        recipe = self.settings(work.seed, work.device, work.compute, work.source.trusted)
        made = api.prune(str(work.source.path), recipe, out=work.out, resume=True, progress=work.progress)
        return {"sparsity": made.sparsity}
