"""Which objective goes with which sampler and which data: refused before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowdim.core.errors import RecipeError
from lowdim.core.recipe import families
from lowdim.train.samplers.base import check_together

if TYPE_CHECKING:
    from lowdim.data.classification import Known
    from lowdim.train.compare.recipe import TrainingRecipe


def check(recipe: TrainingRecipe, known: Known) -> None:
    """Refuse an objective or a sampler that cannot work with the rest of a recipe.

    Raises:
        RecipeError: they exclude each other, or need groups or ranks that are not given.
    """
    objective, sampler = recipe.objective, recipe.sampler
    check_together(objective, sampler)
    for chosen in (objective, sampler):
        chosen.check_kind(known.kind)
    sampler.check_length(recipe.epochs)
    for kind, chosen in (("objective", objective), ("sampler", sampler)):
        name = families.name_of(kind, chosen)
        if "ranks" in chosen.requires and recipe.ranks is None:
            raise RecipeError(
                f"{kind} {name!r} needs ranks of the samples. Give ranks, a directory that 'lowdim rank' wrote."
            )
        if "groups" in chosen.requires and recipe.ranks is None and not known.cues:
            raise RecipeError(
                f"{kind} {name!r} needs groups, and data {known.name!r} has no labels of them. Give ranks, a directory "
                "that 'lowdim rank' wrote, or choose data with a known bias, such as coloured-fashion-mnist."
            )
