"""Every setting that a recipe accepts changes what is pruned; one that would change nothing is refused."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.prune import one, tiny
from torch import Tensor

from lowdim.core import registry
from lowdim.core.allocation import LayerInfo, ScannedLayer
from lowdim.core.errors import RecipeError
from lowdim.core.score import Evidence
from lowdim.prune.budgets import budgets
from lowdim.prune.engine import Engine
from lowdim.prune.recipe import Recipe

KINDS = ("score", "repair", "allocation", "pattern", "refine")
SHAPES = {"q": (16, 16), "k": (8, 16), "v": (8, 16), "o": (16, 16), "up": (24, 16), "down": (16, 24)}
NAMES = {"up": "mlp.up_proj", "down": "mlp.down_proj"}
PRUNED = [f"model.layers.0.{name}" for name in ("self_attn.o_proj", "mlp.down_proj")]
CONFIG = SimpleNamespace(num_attention_heads=4, num_key_value_heads=2, hidden_size=16, head_dim=4)
INPUTS = {width: one.inputs(64, width) for width in (16, 24)}

# What a word is at its start where its own defaults do not fit layers this small, and values to try instead.
BASE: dict[tuple[str, str], dict[str, Any]] = {
    ("repair", "refit"): {"iterations": 6},
    ("allocation", "explicit"): {"map": {"q_proj": 0.25}},
    ("pattern", "block"): {"rows": 4, "cols": 4},
}
OTHER: dict[str, list[Any]] = {
    "score.damping": [5.0 / 6],
    "repair.damping": [5.0],
    "repair.block": [4],
    "repair.iterations": [1],
    "repair.tolerance": [0.9],
    "allocation.power": [0.0],
    "allocation.classifier_density": [0.6],
    "allocation.gates": [2],
    "allocation.m": [1.5],
    "allocation.lam": [0.2, 1.0],
    "allocation.epsilon": [0.1],
    "allocation.map": [{"q_proj": 0.75}],
    "pattern.block": [8],
    "pattern.keep": [1],
    "pattern.group": ["row", "matrix", "column-block", 8],
    "pattern.rows": [2],
    "pattern.cols": [2],
    "pattern.gates": [2],
    "refine.max_cycles": [1],
    "refine.threshold": [50.0, 500.0],
    "refine.power": [0.0, 4.0],
}


def layer_name(block: int, key: str) -> str:
    return f"model.layers.{block}.{NAMES.get(key, f'self_attn.{key}_proj')}"


LAYERS = [LayerInfo(layer_name(block, key), block, shape) for block in (0, 1) for key, shape in SHAPES.items()]
WEIGHTS = {info.name: one.matrix(*info.shape, seed=i) ** 3 * (1 + info.block) for i, info in enumerate(LAYERS)}


def scan(recipe: Recipe) -> Iterator[list[ScannedLayer]]:
    for block in (0, 1):
        held = [info for info in LAYERS if info.block == block]
        yield [ScannedLayer(info, *seen(recipe, info)) for info in held]


def seen(recipe: Recipe, info: LayerInfo) -> tuple[Tensor, Tensor | None]:
    score = registry.find("score", "wanda").load()() if recipe.allocation.scale_from == "wanda" else recipe.score
    return score.compared(evidence(info))(WEIGHTS[info.name])  # type: ignore[no-any-return]


@cache
def evidence(info: LayerInfo) -> Evidence:
    statistics = one.statistics(INPUTS[info.cols], frozenset({"gram", "moments"}))
    return Evidence(statistics, one.matrix(*info.shape, seed=99))


def outcome(recipe: Recipe) -> dict[str, Tensor]:
    """Return what the recipe makes of two layers, and what it lets each layer of two blocks keep."""
    shares = recipe.pattern.allocate(recipe.allocation, LAYERS, recipe.target, lambda: scan(recipe)).sparsities
    plan = budgets(LAYERS, shares, recipe.legal)
    made = {f"keep {name}": torch.tensor(budget.keep) for name, budget in plan.items()}
    first = [info for info in LAYERS if info.block == 0]
    engine = Engine(recipe, plan, {info.name: one.matrix(*info.shape, seed=99) for info in first})
    masks: Mapping[str, Tensor] | None = None
    if recipe.pattern.joint:
        scores = {info.name: recipe.score.scores(WEIGHTS[info.name], evidence(info)) for info in first}
        masks = recipe.pattern.joint_masks(scores, CONFIG, {name: plan[name].keep for name in scores})
    for info in (each for each in first if each.name in PRUNED):
        layer = one.layer(WEIGHTS[info.name], info.name)
        inputs = evidence(info).inputs
        assert inputs is not None
        engine.prune([layer], inputs, masks)
        made[info.name] = layer.weight()
    return made


def words(kind: str) -> list[dict[str, Any]]:
    return [{"name": name} | BASE.get((kind, name), {}) for name in registry.names(kind)]


def build(chosen: Mapping[str, Any]) -> Recipe | None:
    """Return the recipe of five words; None if it is refused."""
    implied = chosen["pattern"]["name"] == "nm"
    try:
        return Recipe(**chosen, **({} if implied else {"sparsity": 0.5}))
    except RecipeError:
        return None


USUAL = {"score": "wanda", "repair": "none", "allocation": "uniform", "pattern": "unstructured", "refine": "none"}
SWEPT = USUAL | {"score": "obs", "repair": "sparsegpt"}
REFINED = USUAL | {"refine": "dsnot"}


def combinations(*near: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return all choices of five words, or those that differ from one of the given in a single word at most."""
    every = [dict(zip(KINDS, chosen, strict=True)) for chosen in itertools.product(*map(words, KINDS))]
    return [
        each
        for each in every
        if not near or any(sum(each[kind]["name"] != usual[kind] for kind in KINDS) < 2 for usual in near)
    ]


def silent(chosen: dict[str, Any]) -> list[str]:
    """Return the settings of a combination that are accepted and change nothing."""
    recipe = build(chosen)
    if recipe is None:
        return []
    found, start = [], outcome(recipe)
    for kind in KINDS:
        for name, value in registry.find(kind, chosen[kind]["name"]).settings().items():
            tried = [build(chosen | {kind: chosen[kind] | {name: other}}) for other in others(kind, name, value)]
            accepted = [each for each in tried if each is not None]
            if accepted and all(same(outcome(each), start) for each in accepted):
                found.append(f"{kind}.{name} of {recipe.word(kind)}")
    return found


def others(kind: str, name: str, value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if kind == "allocation" and name in ("pooling", "mapping"):
        return ["layer"]
    if name == "estimator":
        return ["none", "xmin_mid"]
    return OTHER[f"{kind}.{name}"]


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.allclose(one[name].double(), other[name].double(), rtol=1e-4, atol=1e-6) for name in one)


def told(chosen: dict[str, Any]) -> str:
    return " ".join(word["name"] for word in chosen.values())


@pytest.mark.parametrize("chosen", combinations(USUAL, SWEPT, REFINED), ids=told)
def test_every_accepted_setting_changes_something(chosen: dict[str, Any]) -> None:
    assert silent(chosen) == []


@pytest.mark.nightly
@pytest.mark.parametrize("chosen", combinations(), ids=told)
def test_every_accepted_setting_changes_something_in_every_combination(chosen: dict[str, Any]) -> None:
    assert silent(chosen) == []


def in_turn(score: str, repair: str, refine: str) -> tuple[Recipe | None, Recipe]:
    """Return a recipe that takes statistics in turn, None if it is refused, and the same block by block."""
    chosen = {"score": score, "repair": repair, "refine": refine}
    try:
        return tiny.recipe(**chosen, sequential="true"), tiny.recipe(**chosen)
    except RecipeError:
        return None, tiny.recipe(**chosen)


@pytest.mark.parametrize("refine", registry.names("refine"))
@pytest.mark.parametrize("repair", ["none", "sparsegpt"])
@pytest.mark.parametrize("score", registry.names("score"))
def test_statistics_in_turn_change_something_or_are_refused(score: str, repair: str, refine: str) -> None:
    asked, usual = in_turn(score, repair, refine)
    if asked is None:
        assert not usual.needs - {"gradient"}
        return
    model = tiny.model()
    first, second = (tiny.weights(tiny.in_memory(model, recipe)) for recipe in (asked, usual))
    assert not all(torch.equal(first[name], second[name]) for name in first)
