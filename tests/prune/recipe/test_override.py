from __future__ import annotations

from typing import Any

import pytest

from lowdim.core.errors import RecipeError
from lowdim.core.recipe import override as overrides
from lowdim.prune.recipe import Recipe


def override(recipe: dict[str, object], given: list[str]) -> dict[str, Any]:
    return overrides.override(Recipe, recipe, overrides.assignments(given))


@pytest.mark.parametrize(
    ("before", "assignment", "after"),
    [
        ({}, "sparsity=0.6", {"sparsity": 0.6}),
        ({}, "pattern=2:4", {"pattern": {"name": "2:4"}}),
        ({}, "calibration.samples=32", {"calibration": {"samples": 32}}),
        (
            {"calibration": {"seed": 1}},
            "calibration.source=a=b.txt",
            {"calibration": {"seed": 1, "source": "a=b.txt"}},
        ),
        ({}, "calibration.context=null", {"calibration": {"context": None}}),
        ({}, "evaluation.tasks=[piqa, rte]", {"evaluation": {"tasks": ["piqa", "rte"]}}),
        ({"allocation": "owl"}, "allocation.m=7", {"allocation": {"name": "owl", "m": 7}}),
        (
            {"allocation": {"name": "owl", "m": 7}},
            "allocation.lam=.1",
            {"allocation": {"name": "owl", "m": 7, "lam": 0.1}},
        ),
        ({"allocation": {"name": "owl", "m": 7}}, "allocation=owl", {"allocation": {"name": "owl", "m": 7}}),
        ({"allocation": {"name": "owl", "m": 7}}, "allocation=alpha", {"allocation": {"name": "alpha"}}),
        ({"allocation": {"name": "owl", "m": 7}}, "allocation.name=alpha", {"allocation": {"name": "alpha"}}),
        ({}, "allocation={name: owl, m: 3}", {"allocation": {"name": "owl", "m": 3}}),
        ({}, "pattern.group=row", {"pattern": {"name": "unstructured", "group": "row"}}),
        ({}, "score.variant=true", {"score": {"name": "wanda", "variant": True}}),
        (
            {"score": "magnitude"},
            "method=sparsegpt",
            {"score": {"name": "obs"}, "repair": {"name": "sparsegpt"}},
        ),
        (
            {"method": "wanda"},
            "method=magnitude",
            {"score": {"name": "magnitude"}, "repair": {"name": "none"}},
        ),
        ({}, " seed = 3", {"seed": 3}),
    ],
)
def test_one_assignment(before: dict[str, object], assignment: str, after: dict[str, object]) -> None:
    assert override(before, [assignment]) == after


def test_later_assignments_win_and_the_given_mapping_is_left_alone() -> None:
    given = {"allocation": {"name": "owl", "m": 3}}
    assert override(given, ["allocation.m=4", "allocation.m=5"])["allocation"]["m"] == 5
    assert given == {"allocation": {"name": "owl", "m": 3}}


@pytest.mark.parametrize(
    ("assignment", "parts"),
    [
        ("allocation.mm=5", ["'allocation.mm'", "Did you mean 'allocation.m'?"]),
        ("alocation.m=5", ["'alocation.m'", "'allocation.m'"]),
        ("m=5", ["'m'", "'allocation.m'"]),
        ("samples=5", ["'samples'", "'calibration.samples'"]),
        ("seed.x=5", ["'seed.x'", "'seed'"]),
        ("calibration.samples.x=5", ["'calibration.samples.x'", "'calibration.samples'"]),
        ("sparsity", ["KEY=VALUE", "'sparsity'"]),
        ("sparsity=[0.5", ["not valid YAML"]),
        ("method=wandda", ["'wandda'", "'wanda'"]),
    ],
)
def test_a_bad_assignment_is_refused(assignment: str, parts: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        override({}, [assignment])
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("section", ["calibration", "allocation"])
def test_a_setting_below_something_that_is_no_mapping(section: str) -> None:
    key = {"calibration": "calibration.samples", "allocation": "allocation.m"}[section]
    with pytest.raises(RecipeError, match=rf"{section} must be a mapping of settings, got 5"):
        overrides.put(Recipe, {section: 5}, key, 1)


@pytest.mark.parametrize(("spelling", "value"), [("layer", "layer"), ("per-layer", "layer"), ("per-block", "block")])
def test_pooling_has_other_spellings(spelling: str, value: str) -> None:
    recipe = Recipe(**override({"sparsity": 0.5, "allocation": "owl"}, [f"allocation.pooling={spelling}"]))
    assert recipe.to_dict()["allocation"]["pooling"] == value


def test_the_keys_that_scripts_rely_on_exist() -> None:
    assert {
        "method",
        "allocation.m",
        "allocation.lam",
        "allocation.pooling",
        "allocation.epsilon",
        "repair.damping",
        "repair.block",
        "pattern.group",
        "calibration.source",
        "calibration.samples",
        "calibration.context",
        "evaluation.tasks",
        "targets.include",
    } <= set(overrides.known_keys(Recipe))


def test_a_written_recipe_can_be_overridden() -> None:
    written = Recipe(sparsity=0.5, method="sparsegpt", allocation="owl").to_dict()
    assert Recipe(**override(written, [])) == Recipe(**written)
    assert Recipe(**override(written, ["repair.block=64"])).repair.block == 64
