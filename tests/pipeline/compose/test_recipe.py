"""The recipe of a composition: how stages are written, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from lowdim.core import registry
from lowdim.core.errors import RecipeError
from lowdim.pipeline.compose.recipe import Composition
from lowdim.pipeline.compose.result import order_free_error, order_sensitivity, sentence, table
from lowdim.pipeline.compose.stage import GRID, MASK, RANK


@pytest.mark.parametrize("name", registry.names("stage"))
def test_every_stage_reads_back(name: str) -> None:
    recipe = Composition(stages=[name])
    assert Composition.from_yaml(recipe.to_yaml()) == recipe
    [stage] = recipe.stages
    assert stage.word() == name and stage.__doc__
    assert (stage.adds | stage.breaks | stage.promises() | stage.renews()) <= {MASK, GRID, RANK}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"stages": ["prun"]}, "unknown stage 'prun'. Did you mean 'prune'"),
        ({"stages": [{"prune": {}, "edit": {}}]}, "Write a stage as its name"),
        ({"stages": 3}, "stages must be a list"),
        ({"stages": [{"edit": {"step": 3}}]}, "Did you mean 'stage.steps'"),
        ({"stages": [{"edit": {"lr": -1}}]}, "lr must be above 0"),
        ({"stages": [{"prune": {"sparsity": 2}}]}, "sparsity"),
        ({"stages": [{"prune": {"evaluation": {}}}]}, "prune.evaluation is the composition's own key"),
        ({"stages": [{"recover": {"masks": "ast", "stage": "distill"}}]}, "Take masks: fixed"),
        ({"stages": ["prune"], "orders": "both"}, "needs two stages"),
        ({"stages": ["prune", "edit", "round"], "orders": "both"}, "say which two change places"),
        ({"stages": ["prune", "edit"], "orders": "both", "pair": [1, 3]}, "two different stages of 1 to 2"),
        ({"stages": ["prune", "edit"], "pair": [1, 2]}, "Take orders: both"),
        ({"stage": []}, "Did you mean 'stages'"),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Composition(**given)


def test_two_stages_of_several_change_places() -> None:
    chains = Composition(stages="prune, recover, edit", orders="both", pair=[1, 3]).chains()
    assert [[stage.word() for stage in chain] for chain in chains.values()] == [
        ["prune", "recover", "edit"],
        ["edit", "recover", "prune"],
    ]


FIRST: dict[str, Any] = {
    "edits": [False, True],
    "forget": [True, False],
    "retain": [],
    "reworded": [],
    "words": [],
    "perplexity": 20.0,
    "tasks": {"piqa": 0.7},
    "zeros": 0.0,
    "megabytes": 1.0,
}


def test_errors_by_hand() -> None:
    assert order_free_error([0.75, 0.5], 1.0) == 0.25
    assert order_sensitivity([0.75, 0.5]) == 0.25
    ends = {
        "model": {"success": 1.0, "forgotten": 0.5, "perplexity": 40.0, "task:piqa": 0.75},
        "reversed": {"success": 0.5, "forgotten": 1.0, "perplexity": 20.0, "task:piqa": 0.6},
    }
    rows = {each["measure"]: each for each in table(FIRST, ends)}
    assert rows["success"]["first"] == 0.5 and rows["success"]["error"] == 0.0
    assert rows["forgotten"]["sensitivity"] == 0.5
    assert rows["perplexity"]["error"] == 0.0
    assert rows["perplexity"]["sensitivity"] == pytest.approx(0.6931, abs=1e-4)
    assert rows["task:piqa"]["error"] == pytest.approx(0.05)
    assert "retained" not in rows and "locality" not in rows
    assert rows["zeros"]["error"] is None


NOTHING: dict[str, Any] = {**FIRST, "edits": [], "forget": [], "tasks": {}, "perplexity": None}
PLAIN = {"zeros": 0.5, "megabytes": 1.0}


@pytest.mark.parametrize(
    ("first", "model", "turned", "said"),
    [
        (NOTHING, {}, {}, "Whether the order matters was not measured: no measure has a finite value"),
        ({**NOTHING, "perplexity": 20.0}, {"perplexity": 30.0}, {"perplexity": float("inf")}, "was not measured"),
        ({**NOTHING, "perplexity": 20.0}, {"perplexity": None}, {"perplexity": 30.0}, "was not measured"),
        (NOTHING, {"perplexity": 30.0}, {"perplexity": 40.0}, "was not measured"),
        (
            {**NOTHING, "perplexity": 20.0},
            {"perplexity": None, "success": 0.5},
            {"perplexity": 30.0, "success": 0.5},
            "The order moves nothing of what was measured. Not measured: perplexity.",
        ),
        (
            {**NOTHING, "perplexity": 20.0},
            {"perplexity": None, "success": 0.5},
            {"perplexity": 30.0, "success": 1.0},
            "The order matters most for edit success: 0.5 with a, 1 with b. Not measured: perplexity.",
        ),
        (
            {**NOTHING, "perplexity": 20.0},
            {"perplexity": 30.0},
            {"perplexity": 30.0},
            "The order does not matter: a and",
        ),
    ],
)
def test_of_orders_that_were_not_compared_nothing_is_claimed(
    first: dict[str, Any], model: dict[str, Any], turned: dict[str, Any], said: str
) -> None:
    ends = {"a": {**model, **PLAIN}, "b": {**turned, **PLAIN}}
    found = sentence(table(first, ends), ["a", "b"])
    assert said in found and ("does not matter" in found) is (model == turned != {})
