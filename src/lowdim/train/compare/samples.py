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


def check_groups(recipe: TrainingRecipe, known: bool) -> None:
    """Refuse an objective or a sampler that needs groups of the samples where there are none.

    Not a part of `check`: groups may be given beside a recipe.

    Args:
        recipe: of the run.
        known: whether there are labels of groups, or ranks, which make some.

    Raises:
        RecipeError: there are none; it says where they come from.
    """
    for kind, chosen in (("objective", recipe.objective), ("sampler", recipe.sampler)):
        if "groups" in chosen.requires and not known:
            raise RecipeError(
                f"{kind} {families.name_of(kind, chosen)!r} needs groups, and data {recipe.data.name!r} has no labels "
                "of them. Give ranks, a directory that 'lowdim rank' wrote, choose data with a known bias, such as "
                "coloured-fashion-mnist, or in Python give train() the argument groups."
            )
