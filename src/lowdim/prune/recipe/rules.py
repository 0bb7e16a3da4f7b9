"""Which choices of a recipe go together; every refusal names both keys, their values and a way out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeGuard

from lowdim.core.allocation import OWL, Explicit
from lowdim.core.errors import RecipeError
from lowdim.core.pattern import NM, Block, Pattern, Structured, Unstructured
from lowdim.core.recipe import families
from lowdim.core.score import OBS
from lowdim.prune.repair.sparsegpt import SparseGPT

if TYPE_CHECKING:
    from lowdim.prune.recipe.schema import Recipe


def check(recipe: Recipe) -> float:
    """Return the sparsity that the recipe asks for, after checking every combination.

    Raises:
        RecipeError: the sparsity is impossible, or two choices exclude each other.
    """
    _check_range(recipe.sparsity)
    for rule in (
        _global,
        _nm_budget,
        _explicit,
        _owl,
        _structured,
        _variant,
        _refine,
        _repair_block,
        _one_block,
        _one_damping,
    ):
        rule(recipe)
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
            raise _clash(
                f"quantize_group={recipe.quantize_group}",
                "quantize=none",
                "there are no scales to share",
                "Choose quantize=int8 or quantize=int4, or leave quantize_group out",
            )
        return "dense" if recipe.storage == "auto" else recipe.storage
    if recipe.storage == "dense":
        raise _clash(
            f"quantize={recipe.quantize}",
            "storage=dense",
            "rounded weights would take as much room as before",
            "Leave storage out; `lowdim convert OUT DENSE --storage dense` writes them in full afterwards",
        )
    return "packed"


def resolve(recipe: Recipe) -> Pattern:
    """Return the pattern with its group decided: the one given, else the one that the other choices ask for.

    "auto" is the whole model under global allocation, the row under DSnoT (whose paper starts from masks with
    equal rows), and otherwise the score's own group. SparseGPT draws its mask in the blocks in which it compensates.
    """
    if _name(recipe, "allocation") == "global":
        return recipe.pattern.resolve("global")
    rows = _name(recipe, "refine") == "dsnot" and not _is_variant(recipe)
    pattern = recipe.pattern.resolve("row" if rows else recipe.score.default_group)
    if _is_blockwise(pattern) and isinstance(recipe.repair, SparseGPT):
        return replace(pattern, block=recipe.repair.block)
    return pattern


def _is_blockwise(pattern: Pattern) -> TypeGuard[Unstructured]:
    return isinstance(pattern, Unstructured) and pattern.group == "column-block"


def _one_block(recipe: Recipe) -> None:
    pattern, repair = recipe.pattern, recipe.repair
    if not isinstance(pattern, Unstructured) or not isinstance(repair, SparseGPT):
        return
    if pattern.block not in (Unstructured().block, repair.block):
        raise _clash(
            f"pattern.block={pattern.block}",
            f"repair.block={repair.block}",
            "SparseGPT masks and compensates the same columns together",
            f"Leave pattern.block out, or write {repair.block}",
        )


def _name(recipe: Recipe, kind: str) -> str:
    return families.name_of(kind, getattr(recipe, kind)) or ""


def _group(recipe: Recipe) -> str:
    return recipe.pattern.group if isinstance(recipe.pattern, Unstructured) else ""


def _is_variant(recipe: Recipe) -> bool:
    return bool(getattr(recipe.score, "variant", False))


def _clash(one: str, other: str, why: str, remedy: str) -> RecipeError:
    return RecipeError(f"{one} does not go with {other}: {why}. {remedy}.")


def _check_range(sparsity: float | None) -> None:
    if sparsity is None or 0 <= sparsity < 1:
        return
    rule = f"sparsity is the share of zeros and must lie in [0, 1), got {sparsity:g}"
    if sparsity == 1:
        raise RecipeError(f"{rule}: no weight would be left. Choose less, for example 0.9.")
    if 1 < sparsity < 100:
        raise RecipeError(f"{rule}. Did you mean {sparsity / 100:g}?")
    raise RecipeError(f"{rule}. Choose for example 0.5.")


def _global(recipe: Recipe) -> None:
    allocation = _name(recipe, "allocation")
    if _group(recipe) == "global" and allocation != "global":
        raise _clash(
            "pattern.group=global",
            f"allocation={allocation}",
            "weights compared over the whole model decide each layer's share themselves",
            f"Choose allocation=global, or pattern.group=matrix to keep {allocation}",
        )


def _nm_budget(recipe: Recipe) -> None:
    allocation = _name(recipe, "allocation")
    if isinstance(recipe.pattern, NM) and allocation not in ("uniform", "owl", "explicit"):
        raise _clash(
            f"allocation={allocation}",
            f"pattern={recipe.pattern}",
            "every layer keeps the same number of each group, so there is no budget to share out",
            "Choose allocation=uniform, allocation=owl (which mixes N per layer), or pattern=unstructured",
        )


def _explicit(recipe: Recipe) -> None:
    pattern, allocation = recipe.pattern, recipe.allocation
    if not isinstance(pattern, NM) or not isinstance(allocation, Explicit):
        return
    for expression, sparsity in (allocation.map or {}).items():
        near = pattern.at(sparsity).sparsity
        if abs(sparsity - near) > 1e-3:
            raise _clash(
                f"allocation.map[{expression!r}]={sparsity:g}",
                f"pattern={pattern}",
                f"a whole number of every {pattern.group} weights is kept",
                f"Choose a multiple of 1/{pattern.group}, such as {near:g}, or pattern=unstructured",
            )


def _owl(recipe: Recipe) -> None:
    lam = recipe.allocation.lam if isinstance(recipe.allocation, OWL) else None
    if lam is not None and lam > 0.5 and not isinstance(recipe.pattern, NM):
        raise _clash(
            f"allocation.lam={lam:g}",
            f"pattern={recipe.pattern}",
            "lam is half the range of the sparsities, so it cannot exceed 0.5",
            "Choose for example allocation.lam=0.08, or an N:M pattern, whose lam counts weights",
        )


def _structured(recipe: Recipe) -> None:
    if not isinstance(recipe.pattern, Structured):
        return
    if recipe.sequential == "true":
        raise _clash(
            "sequential=true",
            "pattern=structured",
            "heads and channels are chosen for a whole block at once",
            "Choose sequential=block",
        )


def _variant(recipe: Recipe) -> None:
    if not _is_variant(recipe):
        return
    if not isinstance(recipe.pattern, Unstructured):
        raise _clash(
            "score.variant=true",
            f"pattern={recipe.pattern}",
            "the variant lets rows lose different numbers of single weights",
            "Choose score.variant=false, or pattern=unstructured",
        )
    if _group(recipe) == "row":
        raise _clash(
            "score.variant=true",
            "pattern.group=row",
            "the variant lets rows lose different numbers of weights",
            "Choose pattern.group=matrix, or score.variant=false",
        )


def _refine(recipe: Recipe) -> None:
    if _name(recipe, "refine") != "dsnot":
        return
    if isinstance(recipe.pattern, (Block, Structured)):
        raise _clash(
            "refine=dsnot",
            f"pattern={recipe.pattern}",
            "it swaps single weights within a row, which breaks whole units",
            "Choose refine=none, or an unstructured or N:M pattern",
        )
    if _group(recipe) == "column-block":
        raise _clash(
            "refine=dsnot",
            "pattern.group=column-block",
            "it keeps the count of each row, not that of each block of columns",
            "Choose refine=none, or pattern.group=row",
        )


def _repair_block(recipe: Recipe) -> None:
    block = getattr(recipe.repair, "block", None)
    if not isinstance(recipe.pattern, NM) or block is None or block % recipe.pattern.group == 0:
        return
    group = recipe.pattern.group
    raise _clash(
        f"repair.block={block}",
        f"pattern={recipe.pattern}",
        f"a group of {group} columns would be cut in two",
        f"Choose a multiple of {group}, such as repair.block={max(1, 128 // group) * group}",
    )


def _one_damping(recipe: Recipe) -> None:
    """Where the repair's sweep draws the mask, it does so from the repair's own Hessian."""
    score, used = recipe.score, getattr(recipe.repair, "damping", None)
    if not isinstance(score, OBS) or used is None or score.damping in (OBS.damping, used):
        return
    by_sweep = _group(recipe) in ("", "auto", "column-block") and _name(recipe, "allocation") != "global"
    if by_sweep and _name(recipe, "refine") == "none":
        raise _clash(
            f"score.damping={score.damping:g}",
            f"repair.damping={used:g}",
            "the repair draws the mask while it compensates, from one Hessian",
            f"Choose repair.damping={score.damping:g} alone",
        )
