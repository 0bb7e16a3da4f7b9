from __future__ import annotations

import itertools

import pytest

from lowdim.core.errors import RecipeError
from lowdim.core.pattern import Unstructured
from lowdim.prune.recipe import METHODS, Recipe

VARIANT = {"name": "wanda", "variant": True}
BLOCK = {"name": "sparsegpt", "block": 64}


def group(name: str) -> dict[str, str]:
    return {"name": "unstructured", "group": name}


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        (
            {"pattern": "2:4", "sparsity": 0.7},
            ["pattern 2:4", "sparsity", "0.7", "1:4", "Leave sparsity out"],
        ),
        ({"pattern": "2:4", "allocation": "er"}, ["allocation=er", "pattern=2:4", "allocation=uniform"]),
        (
            {"pattern": "2:4", "allocation": "er-plus"},
            ["allocation=er-plus", "pattern=2:4", "pattern=unstructured"],
        ),
        ({"pattern": "2:4", "allocation": "global"}, ["allocation=global", "pattern=2:4", "allocation=owl"]),
        ({"pattern": "4:8", "allocation": "alpha"}, ["allocation=alpha", "pattern=4:8"]),
        (
            {"sparsity": 0.5, "pattern": group("global")},
            ["pattern.group=global", "allocation=uniform", "allocation=global", "pattern.group=matrix"],
        ),
        (
            {"sparsity": 0.5, "pattern": "16x16", "refine": "dsnot"},
            ["refine=dsnot", "pattern=16x16", "refine=none"],
        ),
        ({"sparsity": 0.5, "pattern": "1x4", "refine": "dsnot"}, ["refine=dsnot", "pattern=1x4"]),
        (
            {"sparsity": 0.5, "pattern": "structured", "refine": "dsnot"},
            ["refine=dsnot", "pattern=structured"],
        ),
        (
            {"sparsity": 0.5, "pattern": group("column-block"), "refine": "dsnot"},
            ["refine=dsnot", "pattern.group=column-block", "pattern.group=row"],
        ),
        ({"pattern": "2:4", "score": VARIANT}, ["score.variant=true", "pattern=2:4", "score.variant=false"]),
        (
            {"sparsity": 0.5, "pattern": group("row"), "score": VARIANT},
            ["score.variant=true", "pattern.group=row", "pattern.group=matrix"],
        ),
        (
            {"sparsity": 0.5, "pattern": "structured", "sequential": "true"},
            ["sequential=true", "pattern=structured", "sequential=block"],
        ),
        (
            {"pattern": "2:4", "allocation": {"name": "explicit", "map": {"mlp": 0.6}}},
            ["allocation.map['mlp']=0.6", "pattern=2:4", "0.5"],
        ),
        (
            {"sparsity": 0.6, "allocation": {"name": "owl", "lam": 2}},
            ["allocation.lam=2", "unstructured", "0.08"],
        ),
        ({"sparsity": 0.6, "allocation": "explicit"}, ["allocation", "map", '"mlp": 0.7']),
        (
            {"pattern": "4:8", "repair": BLOCK, "score": "obs"},
            ["repair.block=64", "pattern=4:8", "Leave repair.block out"],
        ),
        ({"sparsity": 0.5, "repair": BLOCK, "score": "wanda"}, ["repair.block=64", "score=wanda"]),
        ({"sparsity": 0.5, "repair": BLOCK, "score": "obs", "refine": "dsnot"}, ["repair.block=64", "refine=dsnot"]),
        (
            {"sparsity": 0.5, "repair": BLOCK, "score": "obs", "allocation": "global"},
            ["repair.block=64", "allocation=global"],
        ),
        (
            {"sparsity": 0.5, "repair": BLOCK, "score": "obs", "pattern": group("row")},
            ["repair.block=64", "pattern.group=row"],
        ),
        (
            {"sparsity": 0.5, "repair": BLOCK, "score": "obs", "pattern": "structured"},
            ["repair.block=64", "pattern=structured"],
        ),
        ({"sparsity": 0.5, "repair": BLOCK, "score": "taylor", "pattern": "1x16"}, ["repair.block=64", "score=taylor"]),
        (
            {"sparsity": 0.5, "pattern": group("row") | {"block": 32}},
            ["pattern.block=32", "pattern.group=row", "column-block"],
        ),
        ({"sparsity": 0.5, "pattern": group("auto") | {"block": 32}}, ["pattern.block=32", "pattern.group=row"]),
        (
            {"sparsity": 0.5, "score": "obs", "allocation": "global", "pattern": group("auto") | {"block": 32}},
            ["pattern.block=32", "pattern.group=global"],
        ),
        (
            {"sparsity": 0.5, "score": "magnitude", "sequential": "true"},
            ["sequential=true", "score=magnitude", "wanda"],
        ),
        ({"sparsity": 0.5, "score": "taylor", "sequential": "true"}, ["sequential=true", "score=taylor"]),
        (
            {"pattern": "2:4", "refine": {"name": "dsnot", "same_sign": True}},
            ["refine.same_sign=true", "pattern=2:4", "Leave refine.same_sign out"],
        ),
    ],
)
def test_a_combination_that_cannot_work(values: dict[str, object], parts: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe(**values)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"pattern": "2:4", "allocation": "owl"},
        {"pattern": "2:4", "refine": "dsnot", "method": "sparsegpt"},
        {"sparsity": 0.5, "allocation": "global", "pattern": group("global")},
        {"sparsity": 0.5, "pattern": group("matrix"), "refine": "dsnot"},
        {"sparsity": 0.5, "pattern": group("row"), "method": "sparsegpt"},
        {"sparsity": 0.5, "score": VARIANT, "pattern": group("matrix")},
        {"pattern": "2:6", "method": "sparsegpt"},
        {"sparsity": 0.5, "repair": BLOCK, "score": "obs"},
        {"sparsity": 0.5, "repair": BLOCK, "score": "obs", "pattern": "1x16"},
        {"sparsity": 0.5, "score": "wanda", "pattern": group("column-block") | {"block": 32}},
        {"sparsity": 0.5, "score": "obs", "pattern": group("auto") | {"block": 32}},
        {"sparsity": 0.5, "score": "magnitude", "repair": "refit", "sequential": "true"},
        {"sparsity": 0.5, "score": "magnitude", "sequential": "true", "exact_errors": True},
        {"sparsity": 0.5, "score": {"name": "obs", "damping": 0.1}, "repair": "sparsegpt", "pattern": "fan-in"},
        {"pattern": "2:6", "method": "refit"},
        {"pattern": "2:4", "allocation": {"name": "owl", "lam": 2}},
        {"pattern": "2:4", "allocation": {"name": "explicit", "map": {"attn": 0.25, "mlp": 0.75}}},
        {"sparsity": 0.6, "allocation": {"name": "explicit", "map": {"attn": 0.31}}},
        {"sparsity": 0.0},
        {"sparsity": 0.999},
    ],
)
def test_a_combination_that_works(values: dict[str, object]) -> None:
    assert Recipe(**values).target >= 0


def test_every_method_goes_with_every_allocation_pattern_and_refinement_that_is_not_ruled_out() -> None:
    allocations = ("uniform", "er", "er-plus", "global", "owl", "alpha")
    patterns = ("unstructured", "2:4", "1x16", "16x16", "structured")
    refused = set()
    for method, allocation, pattern, refine in itertools.product(METHODS, allocations, patterns, ("none", "dsnot")):
        try:
            Recipe(sparsity=0.5, method=method, allocation=allocation, pattern=pattern, refine=refine)
        except RecipeError:
            refused.add((method, allocation, pattern, refine))
    expected = {
        (method, allocation, pattern, refine)
        for method, allocation, pattern, refine in itertools.product(METHODS, allocations, patterns, ("none", "dsnot"))
        if (pattern == "2:4" and allocation not in ("uniform", "owl"))
        or (refine == "dsnot" and pattern in ("1x16", "16x16", "structured"))
    }
    assert refused == expected


def test_sparsegpt_masks_the_columns_that_it_compensates_together() -> None:
    recipe = Recipe(sparsity=0.5, score="obs", repair={"name": "sparsegpt", "block": 64})
    assert isinstance(recipe.legal, Unstructured)
    assert (recipe.legal.group, recipe.legal.block) == ("column-block", 64)
    with pytest.raises(RecipeError, match=r"pattern\.block=32 does not go with repair\.block=64"):
        Recipe(
            sparsity=0.5,
            score="obs",
            repair={"name": "sparsegpt", "block": 64},
            pattern=Unstructured(block=32),
        )
