"""Which objective goes with which sampler and which data: refused before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowdim.core.errors import RecipeError, clash, suggest
from lowdim.core.recipe import families
from lowdim.data import classification
from lowdim.train.samplers.base import check_together

if TYPE_CHECKING:
    from lowdim.data.classification import Known
    from lowdim.train.compare.recipe import TrainingRecipe


def check(recipe: TrainingRecipe, known: Known) -> None:
    """Refuse an objective or a sampler that cannot work with the rest of a recipe.

    Raises:
        RecipeError: they exclude each other, ranks are given that neither trains with, or a built-in set has no labels
            of the groups that are named.
    """
    if recipe.groups is not None and recipe.data.name in classification.SETS and recipe.groups not in known.cues:
        remedy = suggest(recipe.groups, known.cues) if known.cues else "Leave groups out."
        raise RecipeError(f"data {known.name!r} has no labels of groups {recipe.groups!r}. {remedy}")
    objective, sampler = recipe.objective, recipe.sampler
    check_together(objective, sampler)
    for chosen in (objective, sampler):
        chosen.check_kind(known.kind)
    sampler.check_length(recipe.epochs)
    if recipe.ranks is not None:
        _check_ranks(recipe)


def _check_ranks(recipe: TrainingRecipe) -> None:
    """Refuse ranks, or the share of them that makes groups, where nothing is trained with them."""
    both = [f"{kind} {families.name_of(kind, getattr(recipe, kind))!r}" for kind in ("objective", "sampler")]
    needed = recipe.objective.requires | recipe.sampler.requires
    if not needed & {"ranks", "groups"}:
        remedy = "Leave ranks out, or choose an objective that does, such as rest or sebra"
        raise clash("ranks", " and ".join(both), "neither trains with ranks or groups", remedy)
    if recipe.ranks is None or "groups" in needed:
        return
    if recipe.ranks.share != type(recipe.ranks).model_fields["share"].default:
        given = f"ranks.share={recipe.ranks.share:g}"
        remedy = "Leave ranks.share out, or choose an objective with groups, such as rest"
        raise clash(given, " and ".join(both), "it makes groups, and neither trains with them", remedy)


def check_known(recipe: TrainingRecipe, *, groups: bool, ranks: bool) -> None:
    """Refuse an objective or a sampler that needs groups or ranks of the samples where there are none, or ranks unused.

    Not a part of `check`: they may be given beside a recipe.

    Args:
        recipe: of the run.
        groups: whether there are labels of groups.
        ranks: whether there are ranks, which make groups as well.

    Raises:
        RecipeError: there are none; it says where they come from. Or there are ranks, and nothing trains with them.
    """
    if ranks:
        _check_ranks(recipe)
    for kind, chosen in (("objective", recipe.objective), ("sampler", recipe.sampler)):
        name = families.name_of(kind, chosen)
        if "ranks" in chosen.requires and not ranks:
            raise RecipeError(
                f"{kind} {name!r} needs ranks of the samples. Give ranks, a directory that 'lowdim rank' wrote, or in "
                "Python give train() the argument ranks."
            )
        if "groups" in chosen.requires and not (groups or ranks):
            raise RecipeError(
                f"{kind} {name!r} needs groups, and data {recipe.data.name!r} has no labels "
                "of them. Give ranks, a directory that 'lowdim rank' wrote, name a column of your own table with "
                "groups, choose data with a known bias, such as coloured-fashion-mnist, or in Python give train() the "
                "argument groups."
            )
