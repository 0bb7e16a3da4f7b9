from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.prune import one, reference
from torch import Tensor

from lowdim.core.errors import NumericalError, RecipeError
from lowdim.core.pattern import NM, Block, Unstructured
from lowdim.core.registry import names
from lowdim.prune.budgets import Budget
from lowdim.prune.engine import Engine
from lowdim.prune.recipe import Recipe

PATTERNS = ["unstructured", "row", "matrix", "column-block", "2:4", "3:8", "1x8", "8x8"]
SHAPES = {"wide": (16, 160), "tall": (160, 16), "square": (32, 32)}
DEGENERATE = {"one row": (1, 24), "one column": (24, 1), "one weight": (1, 1), "uneven": (7, 131)}


def make(score: str, repair: str, pattern: str, refine: str, **settings: Any) -> Recipe | None:
    """Return a recipe of the registry's methods; None if the recipe refuses the combination."""
    group = pattern in ("row", "matrix", "column-block")
    settings |= {"pattern": {"name": "unstructured", "group": pattern} if group else pattern}
    if ":" not in pattern:
        settings.setdefault("sparsity", 0.5)
    try:
        return Recipe(score=score, repair=repair, refine=refine, **settings)
    except RecipeError:
        return None


COMBINATIONS = [
    (score, repair, pattern, refine)
    for score in names("score")
    for repair in names("repair")
    for pattern in PATTERNS
    for refine in names("refine")
    if make(score, repair, pattern, refine)
]


def check_pattern(kept: Tensor, recipe: Recipe) -> None:
    pattern, (rows, cols) = recipe.legal, kept.shape
    count = int(kept.sum())
    if isinstance(pattern, NM):
        assert (kept.reshape(-1, pattern.group).sum(1) == pattern.keep).all()
        return
    assert count == one.keep_of(recipe, kept)
    if isinstance(pattern, Block):
        tiles = kept.reshape(rows // pattern.rows, pattern.rows, cols // pattern.cols, pattern.cols)
        assert torch.equal(tiles.all(3).all(1), tiles.any(3).any(1))
    elif isinstance(pattern, Unstructured) and pattern.group == "row":
        assert int(kept.sum(1).max() - kept.sum(1).min()) <= 1
    elif isinstance(pattern, Unstructured) and pattern.group == "column-block":
        assert all(abs(part.float().mean() - count / kept.numel()) < 1 / part.shape[1] for part in kept.split(128, 1))


def test_only_dsnot_and_the_patterns_it_cannot_keep_are_refused() -> None:
    everything = len(names("score")) * len(names("repair")) * len(PATTERNS) * len(names("refine"))
    refused = len(names("score")) * len(names("repair")) * len(["column-block", "1x8", "8x8"])
    assert len(COMBINATIONS) == everything - refused


@pytest.mark.parametrize(("pattern", "cols"), [("2:6", 36), ("3:5", 160), ("1:7", 133), ("100:200", 400)])
@pytest.mark.parametrize("score", ["obs", "wanda"])
def test_a_repair_takes_groups_that_do_not_divide_its_block(pattern: str, cols: int, score: str) -> None:
    recipe = make(score, "sparsegpt", pattern, "none")
    assert recipe is not None
    weight, x = one.matrix(8, cols), one.inputs(900, cols)
    repaired, outcome = one.prune(recipe, weight, x)
    assert outcome.mask is not None
    check_pattern(outcome.mask, recipe)
    masked = weight * outcome.mask
    assert (x @ (repaired - weight).t()).norm() < (x @ (masked - weight).t()).norm()


@pytest.mark.parametrize(("score", "repair", "pattern", "refine"), COMBINATIONS)
def test_every_registered_combination(score: str, repair: str, pattern: str, refine: str) -> None:
    recipe = make(score, repair, pattern, refine)
    assert recipe is not None
    for rows, cols in SHAPES.values():
        weight, x = one.matrix(rows, cols), one.inputs(300, cols)
        made, outcome = one.prune(recipe, weight, x)
        again, _ = one.prune(recipe, weight, x)
        turned, _ = one.prune(recipe, weight, x, turned=True)
        assert torch.equal(made, again)
        assert torch.equal(made, turned)
        assert outcome.mask is not None
        assert torch.equal(made != 0, outcome.mask)
        assert not torch.signbit(made[made == 0]).any()
        check_pattern(outcome.mask, recipe)
        assert outcome.notes == ()
        if repair == "none":
            assert torch.equal(made, weight * outcome.mask)
        assert (outcome.error is None) == (not Engine(recipe, {}).needs)
        assert outcome.error is None or 0 < outcome.error < 1


@pytest.mark.parametrize(("rows", "cols"), DEGENERATE.values(), ids=DEGENERATE)
@pytest.mark.parametrize("repair", names("repair"))
@pytest.mark.parametrize("score", names("score"))
def test_degenerate_shapes_get_exact_counts(score: str, repair: str, rows: int, cols: int) -> None:
    for refine in names("refine"):
        recipe = make(score, repair, "unstructured", refine, sparsity=0.3)
        assert recipe is not None
        weight = one.matrix(rows, cols)
        made, _ = one.prune(recipe, weight, one.inputs(40, cols))
        assert int((made != 0).sum()) == one.keep_of(recipe, weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "refit"])
def test_half_precision_is_rounded_once_at_the_end(method: str, dtype: torch.dtype) -> None:
    recipe = Recipe(sparsity=0.5, method=method)
    weight, x = one.matrix(16, 64).to(dtype), one.inputs(300, 64)
    made, _ = one.prune(recipe, weight, x)
    wide, _ = one.prune(recipe, weight.float(), x)
    assert made.dtype == dtype
    assert torch.equal(made, wide.to(dtype))


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "refit"])
def test_ties_fall_by_position(method: str) -> None:
    x = torch.eye(8).repeat(4, 1)
    made, _ = one.prune(Recipe(sparsity=0.5, method=method), torch.full((4, 8), 2.0), x)
    kept = torch.zeros(4, 8, dtype=torch.bool)
    if method == "wanda":
        kept[:, :4] = True
    else:
        kept[:2] = True
    assert torch.equal(made, 2.0 * kept)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "refit"])
def test_rows_of_zeros_stay_zeros(method: str) -> None:
    weight = one.matrix(6, 16)
    weight[2], weight[4] = 0.0, -0.0
    made, outcome = one.prune(Recipe(sparsity=0.25, method=method), weight, one.inputs(100, 16))
    assert (made[[2, 4]] == 0).all()
    assert not torch.signbit(made[4]).any()
    assert outcome.mask is not None
    assert int(outcome.mask.sum()) == 72


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "refit"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "1x4", "4x4"])
def test_weights_on_dead_inputs_fall_first_and_counts_stay_exact(method: str, pattern: str) -> None:
    recipe = Recipe(method=method, pattern=pattern, **({} if ":" in pattern else {"sparsity": 0.5}))
    weight, x = one.matrix(16, 64), one.inputs(300, 64)
    dead = torch.zeros(64, dtype=torch.bool)
    dead[[3, 4, 5, 6, 7, 20]] = True
    x[:, dead] = 0.0
    made, outcome = one.prune(recipe, weight, x)
    check_pattern(made != 0, recipe)
    spared = (made != 0) & dead
    assert torch.equal(made[spared], weight[spared])
    if pattern == "unstructured":
        assert not spared.any()
    assert outcome.error is not None


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "refit"])
def test_inputs_that_are_all_zero_leave_the_order_to_decide(method: str) -> None:
    made, outcome = one.prune(Recipe(sparsity=0.5, method=method), one.matrix(4, 8), torch.zeros(10, 8))
    assert int((made != 0).sum()) == 16
    assert torch.equal(made, one.matrix(4, 8) * (made != 0))
    assert outcome.error == 0.0


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "refit"])
def test_sparsity_zero_is_the_identity_to_the_bit(method: str) -> None:
    weight = one.matrix(4, 8)
    weight[0, 0], weight[1, 1] = -0.0, 0.0
    made, outcome = one.prune(Recipe(sparsity=0.0, method=method), weight, one.inputs(50, 8))
    assert torch.equal(made.view(torch.int32), weight.view(torch.int32))
    assert outcome.error == 0.0


def test_a_nan_in_a_weight_names_the_layer() -> None:
    weight = one.matrix(4, 8)
    weight[2, 3] = torch.nan
    with pytest.raises(NumericalError, match=r"'blocks.0.attn.q_proj' holds NaN"):
        one.prune(Recipe(sparsity=0.5, method="magnitude"), weight, one.inputs(50, 8))


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("value", [torch.inf, torch.nan, 1e30])
def test_inputs_that_overflow_name_the_layer(method: str, value: float) -> None:
    x = one.inputs(50, 8)
    x[7, 2] = value
    with pytest.raises(NumericalError, match=r"the inputs of blocks.0.attn.q_proj hold NaN or Inf"):
        one.prune(Recipe(sparsity=0.5, method=method), one.matrix(4, 8), x)


@pytest.mark.parametrize("repair", ["sparsegpt", "refit"])
def test_a_singular_hessian_gets_more_damping_and_says_so(repair: str) -> None:
    recipe = Recipe(sparsity=0.5, score="wanda", repair={"name": repair, "damping": 1e-12})
    made, outcome = one.prune(recipe, one.matrix(16, 64), one.inputs(1, 64))
    assert made.isfinite().all()
    assert any("damping raised from 1e-12 to" in note for note in outcome.notes)
    assert int((made != 0).sum()) == 512


def test_a_layer_without_tokens_is_left_dense_and_reported() -> None:
    recipe = Recipe(sparsity=0.5, method="wanda")
    weight = one.matrix(4, 8)
    made, outcome = one.prune(recipe, weight, torch.zeros(0, 8))
    assert torch.equal(made, weight)
    assert outcome.mask is None
    assert outcome.notes == ("no calibration token reached the layer; left dense",)
    made, outcome = one.prune(Recipe(sparsity=0.5, method="magnitude"), weight, torch.zeros(0, 8))
    assert int((made != 0).sum()) == 16


def test_the_error_is_the_share_of_output_energy_lost() -> None:
    weight, x = one.matrix(12, 24), one.inputs(200, 24)
    for method in ("sparsegpt", "refit"):
        made, outcome = one.prune(Recipe(sparsity=0.5, method=method), weight, x)
        lost = (x @ (made - weight).t()).square().sum() / (x @ weight.t()).square().sum()
        assert outcome.error == pytest.approx(float(lost), rel=1e-4)
    made, outcome = one.prune(Recipe(sparsity=0.5, method="wanda"), weight, x)
    column = x.square().sum(0)
    lost = ((made - weight).square() @ column).sum() / (weight.square() @ column).sum()
    assert outcome.error == pytest.approx(float(lost), rel=1e-5)
    _, exact = one.prune(Recipe(sparsity=0.5, method="wanda", exact_errors=True), weight, x)
    lost = (x @ (made - weight).t()).square().sum() / (x @ weight.t()).square().sum()
    assert exact.error == pytest.approx(float(lost), rel=1e-4)


def test_the_order_of_methods_by_output_error() -> None:
    weight, x = one.matrix(64, 160), one.inputs(2000, 160)
    errors = [
        one.prune(Recipe(sparsity=0.5, method=method, exact_errors=True), weight, x)[1].error
        for method in ("refit", "sparsegpt", "wanda", "magnitude")
    ]
    assert errors == sorted(errors)


def test_layers_swept_side_by_side_are_as_if_alone() -> None:
    recipe = Recipe(sparsity=0.6, method="sparsegpt")
    x, shapes = one.inputs(400, 160), {"a": 8, "b": 24, "c": 3}
    layers = [one.layer(one.matrix(rows, 160, seed=rows), name) for name, rows in shapes.items()]
    keeps = {made.name: made.master.numel() // (2 + i) for i, made in enumerate(layers)}
    engine = Engine(recipe, {name: Budget(recipe.legal, keep) for name, keep in keeps.items()})
    engine.prune(layers, one.statistics(x, engine.needs))
    for made in layers:
        alone = one.layer(one.matrix(shapes[made.name], 160, seed=shapes[made.name]), made.name)
        engine.prune([alone], one.statistics(x, engine.needs))
        assert int((made.master != 0).sum()) == keeps[made.name]
        assert torch.allclose(made.master, alone.master, atol=1e-5)


@pytest.mark.parametrize(("sparsity", "cols"), [(0.5, 192), (0.5, 256), (0.75, 128)])
def test_sparsegpt_equals_an_unblocked_reference_in_fp64(sparsity: float, cols: int) -> None:
    weight, x = one.matrix(48, cols), one.inputs(4 * cols, cols)
    made, _ = one.prune(Recipe(sparsity=sparsity, method="sparsegpt"), weight, x)
    h = reference.hessian(x.double(), 0.01)
    expected, pruned, _ = reference.sparsegpt(weight, h, reference.by_blocks(sparsity))
    assert torch.equal(made == 0, pruned)
    assert float((made - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize(("keep", "group"), [(2, 4), (1, 4), (5, 8), (1, 3), (7, 48), (32, 64)])
def test_sparsegpt_by_groups_equals_an_unblocked_reference_in_fp64(keep: int, group: int) -> None:
    weight, x = one.matrix(32, 192), one.inputs(800, 192)
    recipe = Recipe(method="sparsegpt", pattern=f"{keep}:{group}")
    made, _ = one.prune(recipe, weight, x)
    h = reference.hessian(x.double(), 0.01)
    expected, pruned, _ = reference.sparsegpt(weight, h, reference.by_groups(keep, group))
    assert torch.equal(made == 0, pruned)
    assert float((made - expected).norm() / expected.norm()) < 1e-5


def test_an_identity_hessian_makes_sparsegpt_magnitude_pruning_per_block() -> None:
    weight, x = one.matrix(16, 256), 3.0 * torch.eye(256)
    made, _ = one.prune(Recipe(sparsity=0.5, method="sparsegpt"), weight, x)
    pruned = [reference.lowest(part.abs().reshape(-1), 1024).reshape(16, 128) for part in weight.split(128, 1)]
    assert torch.equal(made, weight * ~torch.cat(pruned, 1))


def test_the_mask_of_sparsegpt_is_drawn_in_the_blocks_that_the_recipe_names() -> None:
    weight, x = one.matrix(16, 128), one.inputs(500, 128)
    for block in (16, 48, 64):
        recipe = Recipe(sparsity=0.5, score="obs", repair={"name": "sparsegpt", "block": block})
        made, _ = one.prune(recipe, weight, x)
        h = reference.hessian(x.double(), 0.01)
        expected, pruned, _ = reference.sparsegpt(weight, h, reference.by_blocks(0.5, block))
        assert torch.equal(made == 0, pruned)
        assert float((made - expected).norm() / expected.norm()) < 1e-5
