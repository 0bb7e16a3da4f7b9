"""What a recipe must satisfy besides the rules of its methods: the range of the sparsity, the form of storage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from lowdim.core import settings
from lowdim.core.errors import RecipeError, clash
from lowdim.core.score.base import GRADIENT

if TYPE_CHECKING:
    from lowdim.prune.recipe.schema import Recipe


def check(recipe: Recipe) -> float:
    """Return the sparsity that the recipe asks for, after every method has checked the others.

    Raises:
        RecipeError: the sparsity is impossible, or two choices exclude each other.
    """
    if recipe.sparsity is not None:
        settings.check_sparsity(recipe.sparsity)
    for word in (recipe.pattern, recipe.allocation, recipe.score, recipe.refine, recipe.repair):
        word.check(recipe)
    if recipe.sequential == "true" and not recipe.idle and not recipe.needs - {GRADIENT}:
        raise clash(
            "sequential=true",
            f"score={recipe.word('score')}",
            "nothing is collected on the layers' inputs, so there is nothing to take in turn",
            "Leave sequential out, or choose a score that looks at inputs, such as wanda",
        )
    try:
        return recipe.pattern.check_recipe(recipe.sparsity)
    except RecipeError as error:
        raise RecipeError(str(error) if "pattern" in str(error)[:8] else f"pattern {error}") from error


def storage(recipe: Recipe) -> Literal["dense", "packed"]:
    """Return the form of storage: the one given, else packed where weights are rounded.

    Raises:
        RecipeError: rounding and the form of storage, or the size of a group, exclude each other.
    """
    if recipe.quantize == "none":
        if recipe.quantize_group != 64:
            raise clash(
                f"quantize_group={recipe.quantize_group}",
                "quantize=none",
                "there are no scales to share",
                "Choose quantize=int8 or quantize=int4, or leave quantize_group out",
            )
        return "dense" if recipe.storage == "auto" else recipe.storage
    if recipe.storage == "dense":
        raise clash(
            f"quantize={recipe.quantize}",
            "storage=dense",
            "rounded weights would take as much room as before",
            "Leave storage out; `lowdim convert OUT DENSE --storage dense` writes them in full afterwards",
        )
    return "packed"
