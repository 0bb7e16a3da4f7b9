"""Rounding kept weights while pruning: the layer on the bench, then whole runs on tiny models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.zoo import ZOO
from tests.prune import one, tiny
from tests.turns import turns

from lowdim.core.quantize import Grid, decode, encode
from lowdim.core.registry import names
from lowdim.models.disk import manifest
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.checks import run_checks
from lowdim.models.disk.convert import convert
from lowdim.models.load import load
from lowdim.prune.api import plan, prune
from lowdim.prune.bench import Outcome
from lowdim.prune.recipe import Recipe
from lowdim.prune.repair.rounding import importance

PATTERNS = ["unstructured", "2:4", "3:8", "1x8", "8x8"]
GRIDS = [("int8", 64), ("int8", 128), ("int4", 64), ("int4", 128)]
METHODS: dict[str, dict[str, Any]] = {
    "magnitude": {"method": "magnitude"},
    "wanda-owl": {"method": "wanda", "allocation": {"name": "owl", "m": 2}},
    "sparsegpt": {"method": "sparsegpt", "pattern": "2:4"},
    "refit-true": {"method": "refit", "sequential": "true"},
}
RUNS = [(method, name) for method in METHODS for name in ("int8", "int4")]


def recipe(**settings: Any) -> Recipe:
    pattern = settings.setdefault("pattern", "unstructured")
    return Recipe(**({} if ":" in pattern else {"sparsity": 0.5}) | settings)


def check(weight: torch.Tensor, outcome: Outcome, grid: Grid) -> None:
    """The weight is its codes, the codes are on the grid, and the mask is where they are not zero."""
    codes = outcome.codes
    assert codes is not None
    assert outcome.mask is not None
    assert torch.equal(decode(codes.levels, codes.scales, grid).to(weight.dtype), weight)
    assert torch.equal(weight != 0, outcome.mask)
    assert codes.levels.int().abs().max() <= 127
    assert grid.bits == 8 or len(set(codes.levels.flatten().tolist()) - {0}) <= 16
    assert outcome.rounding is not None
    assert 0 < outcome.rounding < 0.05


class TestLayer:
    @pytest.mark.parametrize(("score", "repair", "pattern"), turns(names("score"), names("repair"), PATTERNS, of=8))
    def test_every_combination_is_on_the_grid_and_keeps_its_mask(self, score: str, repair: str, pattern: str) -> None:
        shapes = [(16, 160), (160, 16), (48, 200), (16, 256)]
        dtypes = [torch.float32, torch.float16, torch.bfloat16, torch.float32]
        for (rows, cols), (name, group), dtype in zip(shapes, GRIDS, dtypes, strict=True):
            made = recipe(score=score, repair=repair, pattern=pattern, quantize=name, quantize_group=group)
            assert made.grid is not None
            weight, x = one.matrix(rows, cols).to(dtype), one.inputs(300, cols)
            pruned, outcome = one.prune(made, weight, x)
            check(pruned, outcome, made.grid)
            assert int((pruned != 0).sum()) == one.keep_of(made, weight)
            turned, _ = one.prune(made, weight, x, turned=True)
            assert torch.equal(pruned, turned)

    @pytest.mark.parametrize("name", ["int8", "int4"])
    @pytest.mark.parametrize("score", ["magnitude", "wanda"])
    def test_without_a_repair_it_is_the_nearest(self, score: str, name: str) -> None:
        weight, x = one.matrix(40, 200), one.inputs(300, 200)
        plain, _ = one.prune(recipe(score=score), weight, x)
        made, _ = one.prune(recipe(score=score, quantize=name), weight, x)
        known = None if score == "magnitude" else importance(x.square().sum(0), plain, plain != 0)
        codes = encode(plain, plain != 0, Grid.of(name), importance=known)
        assert torch.equal(made, decode(codes.levels, codes.scales, Grid.of(name)))

    @pytest.mark.parametrize("repair", ["sparsegpt", "refit"])
    @pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
    def test_the_order_of_errors(self, repair: str, pattern: str) -> None:
        """Compensated beats to the nearest on the same mask, 8 bits are nearly free, 4 are not."""
        weight, x = one.matrix(64, 320), one.inputs(2000, 320)

        def error(**settings: Any) -> float:
            made = recipe(score="wanda", pattern=pattern, exact_errors=True, **settings)
            found = one.prune(made, weight, x)[1].error
            assert found is not None
            return found

        none, eight, four = (error(repair=repair, quantize=name) for name in ("none", "int8", "int4"))
        assert none < four
        assert eight == pytest.approx(none, rel=0.01)
        assert eight < four
        assert four < error(repair="none", quantize="int4")
        made = recipe(score="wanda", pattern=pattern, repair=repair)
        plain, outcome = one.prune(made, weight, x)
        known = importance(x.square().sum(0), plain, plain != 0)
        codes = encode(plain, outcome.mask, Grid(4), importance=known)
        change = decode(codes.levels, codes.scales, Grid(4)) - weight
        nearest = float((x @ change.t()).square().sum() / (x @ weight.t()).square().sum())
        assert four < nearest

    @pytest.mark.parametrize("repair", ["sparsegpt", "refit"])
    @pytest.mark.parametrize("name", ["int8", "int4"])
    def test_nothing_pruned_it_is_gptq(self, repair: str, name: str) -> None:
        """With no weight pruned, what is left is rounding with compensation; it beats the nearest."""
        weight, x = one.matrix(48, 192), one.inputs(1500, 192)
        errors = {}
        for each in ("none", repair):
            made = recipe(score="wanda", repair=each, quantize=name, sparsity=0.0, exact_errors=True)
            pruned, outcome = one.prune(made, weight, x)
            assert bool((pruned != 0).all())
            errors[each] = outcome.error
        assert errors[repair] < 0.85 * errors["none"]

    @pytest.mark.parametrize("score", names("score"))
    @pytest.mark.parametrize("repair", names("repair"))
    @pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
    def test_the_mask_is_the_one_without_rounding(self, score: str, repair: str, pattern: str) -> None:
        weight, x = one.matrix(40, 200), one.inputs(300, 200)
        masks = [
            one.prune(recipe(score=score, repair=repair, pattern=pattern, quantize=name), weight, x)[1].mask
            for name in ("none", "int8", "int4")
        ]
        assert masks[0] is not None
        assert all(other is not None and torch.equal(masks[0], other) for other in masks)

    @pytest.mark.parametrize("method", ["wanda", "sparsegpt", "refit"])
    @pytest.mark.parametrize("name", ["int8", "int4"])
    def test_zeros_stay_zeros_and_dead_inputs_are_rounded_too(self, method: str, name: str) -> None:
        weight, x = one.matrix(16, 64), one.inputs(300, 64)
        weight[3], weight[5, 5] = 0.0, -0.0
        x[:, [2, 7]] = 0.0
        weight[:, 7] *= 100  # far beyond the scale of what the sweep sees
        made = recipe(method=method, quantize=name, pattern="4x4")
        assert made.grid is not None
        pruned, outcome = one.prune(made, weight, x)
        assert outcome.mask is not None
        assert outcome.codes is not None
        assert torch.equal(pruned != 0, outcome.mask & (weight != 0))
        assert torch.equal(decode(outcome.codes.levels, outcome.codes.scales, made.grid), pruned)
        spared = outcome.mask[:, 7] & (weight[:, 7] != 0)
        step = outcome.codes.scales[:, 0].float()
        room = {"int8": 0.5, "int4": 20}[name]
        assert bool(((pruned - weight)[:, 7].abs() <= room * step)[spared].all())

    @pytest.mark.parametrize("method", ["wanda", "sparsegpt", "refit"])
    def test_a_row_without_a_weight(self, method: str) -> None:
        weight, x = one.matrix(6, 130), one.inputs(300, 130)
        weight[1] = 0.0
        weight[4, 10:] = 0.0
        for name in ("int8", "int4"):
            pruned, outcome = one.prune(recipe(method=method, quantize=name, sparsity=0.9), weight, x)
            assert outcome.codes is not None
            assert bool(pruned.isfinite().all())
            assert not pruned[1].any()

    def test_an_untouched_layer_without_tokens_has_no_codes(self) -> None:
        weight = one.matrix(4, 8)
        pruned, outcome = one.prune(recipe(method="wanda", quantize="int8"), weight, torch.zeros(0, 8))
        assert torch.equal(pruned, weight)
        assert outcome.codes is None
        assert outcome.rounding is None


@pytest.mark.parametrize(("kind", "run"), turns(list(ZOO), RUNS, of=8))
def test_disk_and_memory_agree_and_the_files_hold_codes(
    kind: str, run: tuple[str, str], saved: Callable[[str], Path], tmp_path: Path
) -> None:
    method, name = run
    made = tiny.recipe(**METHODS[method], quantize=name)
    result = prune(str(saved(kind)), made, calibration=tiny.padded(), out=tmp_path / "out")
    assert result.manifest["fallbacks"] == []
    checkpoint = Checkpoint(tmp_path / "out")
    for layer in result.manifest["layers"]:
        form = checkpoint.form(f"{layer}.weight" if f"{layer}.weight" in checkpoint else layer)
        assert form is not None
        assert (form.grid, form.transposed) == (made.grid, kind == "gpt2")
    checks = run_checks(tmp_path / "out")
    assert not [check for check in checks if check.passed is False]
    memory = tiny.in_memory(load(saved(kind)), made, tiny.padded())
    assert memory.model is not None
    assert torch.equal(tiny.logits(load(tmp_path / "out")), tiny.logits(memory.model))


@pytest.mark.parametrize("kind", turns(["llama", "gpt2", "mixtral"], of=3))
def test_a_model_in_memory_is_written_with_the_same_codes(
    kind: str, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    for name in ("int8", "int4"):
        made = tiny.recipe(method="sparsegpt", quantize=name)
        prune(str(saved(kind)), made, calibration=tiny.tokens(), out=tmp_path / name)
        out = tmp_path / f"{name}-memory"
        prune(load(saved(kind)), made, calibration=tiny.tokens(), out=out)
        disk, memory = Checkpoint(tmp_path / name), Checkpoint(out)
        assert manifest.read(out).packed == manifest.read(tmp_path / name).packed
        for weight in disk.names():
            if disk.is_packed(weight):
                parts = memory.read_packed(weight).tensors()
                for part, tensor in disk.read_packed(weight).tensors().items():
                    assert torch.equal(tensor, parts[part]), weight


def test_the_mask_of_magnitude_is_that_of_the_run_without(saved: Callable[[str], Path], tmp_path: Path) -> None:
    for name in ("none", "int8", "int4"):
        made = tiny.recipe(method="magnitude", quantize=name)
        prune(str(saved("llama")), made, out=tmp_path / name)
    masks = [manifest.read(tmp_path / name).hashes.masks for name in ("none", "int8", "int4")]
    assert masks[0] == masks[1] == masks[2]
    sizes = [Checkpoint(tmp_path / name).size_bytes for name in ("none", "int8", "int4")]
    assert sizes == sorted(sizes, reverse=True)


def test_the_record_says_what_was_done(saved: Callable[[str], Path], tmp_path: Path) -> None:
    made = tiny.recipe(method="sparsegpt", quantize="int4", quantize_group=128)
    prune(str(saved("llama")), made, calibration=tiny.tokens(), out=tmp_path / "out")
    record = manifest.read(tmp_path / "out")
    assert (record.recipe["quantize"], record.recipe["quantize_group"]) == ("int4", 128)
    assert record.recipe["storage"] == record.storage == "packed"
    assert record.packed is not None
    assert record.packed.format == "2"
    said = {"bits": 4, "group": 128, "dtype": "F32"}
    assert record.packed.quantized == dict.fromkeys(record.packed.weights, said)
    for layer in record.layers.values():
        assert layer.rounding is not None
        assert 0 < layer.rounding < 0.05


def test_a_dense_copy_computes_the_same(saved: Callable[[str], Path], tmp_path: Path) -> None:
    made = tiny.recipe(method="wanda", quantize="int4")
    prune(str(saved("llama")), made, calibration=tiny.tokens(), out=tmp_path / "out")
    dense = convert(tmp_path / "out", tmp_path / "dense", "dense")
    assert torch.equal(tiny.logits(load(dense)), tiny.logits(load(tmp_path / "out")))
    assert not [check for check in run_checks(dense) if check.passed is False]
    again = Checkpoint(convert(dense, tmp_path / "again", "packed"))
    assert {form.grid for name in again.names() if (form := again.form(name))} == {None}


def test_an_expert_without_tokens_stays_as_it_was(tmp_path: Path) -> None:
    from tests.prune.test_moe import lopsided

    model, idle = lopsided("mixtral")
    source = tiny.save_model(model, tmp_path / "model")
    made = tiny.recipe(method="wanda", quantize="int8")
    result = prune(str(source), made, calibration=tiny.tokens(), out=tmp_path / "out")
    checkpoint, before = Checkpoint(tmp_path / "out"), Checkpoint(source)
    assert {entry["what"] for entry in result.manifest["fallbacks"]} == {
        "no calibration token reached the layer; left dense"
    }
    experts = [name for name in result.manifest["layers"] if "layers.1." in name and "experts" in name]
    for name in experts:
        quiet = any(f"experts.{e}." in name for e in idle)
        assert checkpoint.is_packed(f"{name}.weight") is not quiet
        same = torch.equal(checkpoint.read(f"{name}.weight"), before.read(f"{name}.weight"))
        assert same is quiet
    memory = tiny.in_memory(model, made)
    assert memory.model is not None
    assert torch.equal(tiny.logits(load(tmp_path / "out")), tiny.logits(memory.model))


def test_the_plan_foretells_the_size(saved: Callable[[str], Path], tmp_path: Path) -> None:
    for name in ("none", "int8", "int4"):
        made = tiny.recipe(method="magnitude", quantize=name, storage="packed")
        planned = plan(str(saved("llama")), made)
        prune(str(saved("llama")), made, out=tmp_path / name)
        written = Checkpoint(tmp_path / name)
        layers = [f"{layer}.weight" for layer in manifest.read(tmp_path / name).layers]
        found = sum(written.stored_bytes(layer) for layer in layers)
        assert planned.stored == pytest.approx(found, rel=0.1 if name == "int4" else 1e-3)
        words = "packed" if name == "none" else f"packed, {name}"
        assert f"Written: {words}, about" in planned.render()


@pytest.mark.nightly
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_on_a_real_model(method: str, tmp_path: Path) -> None:
    """8 bits cost next to nothing, 4 bits something; a level or two too few for a large input cost everything."""
    evaluation = {"text": "builtin", "windows": 8}
    found = {}
    for name in ("none", "int8", "int4"):
        made = Recipe(
            sparsity=0.5,
            method=method,
            quantize=name,
            calibration={"samples": 8, "context": 512},
            evaluation=evaluation,
            storage="packed",
        )
        result = prune("builtin:smollm2-135m", made, out=tmp_path / name)
        found[name] = result.manifest["evaluation"]["perplexity"]["sparse"]
    assert found["int8"] == pytest.approx(found["none"], rel=0.02)
    assert found["none"] < found["int4"] < 1.4 * found["none"]
    sizes = [Checkpoint(tmp_path / name).size_bytes for name in found]
    assert sizes[1] < 0.75 * sizes[0]
    assert sizes[2] < 0.6 * sizes[0]
