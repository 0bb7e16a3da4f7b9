"""Every option changes something, and only what it should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.evaluate.conftest import build_tokenizer
from tests.prune import tiny
from torch import Tensor

from lowdim.core.errors import RecipeError
from lowdim.core.registry import names
from lowdim.models.disk import manifest
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.prune.api import PruneResult, prune

OWL = {"name": "owl", "m": 2}
REFIT = {"name": "refit", "iterations": 100}
EXPLICIT = {"name": "explicit", "map": {"down_proj": 0.8}}


def run(kind: str = "llama", data: Any = None, **settings: Any) -> PruneResult:
    return tiny.in_memory(tiny.model(kind), tiny.recipe(**settings), data)


def same(one: PruneResult, other: PruneResult) -> bool:
    a, b = tiny.weights(one), tiny.weights(other)
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("bos", ["none", "window"])
def test_the_recipe_says_where_the_start_of_text_token_goes(tmp_path: Path, bos: str) -> None:
    tokenizer = build_tokenizer("<s> $A")
    (tmp_path / "a.txt").write_text("the cat sat on the mat. " * 20)
    rows = [{"context": "ab", "choices": ["c", "d"], "label": 0}] * 3
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = {"text": str(tmp_path / "a.txt"), "context": 16, "windows": 4, "tasks": [str(tmp_path / "q.jsonl")]}
    found = []
    for policy in ("tokenizer", bos):
        recipe = tiny.recipe(method="magnitude", evaluation=asked | {"bos": policy})
        made = prune(tiny.model(), recipe, tokenizer=tokenizer).manifest["evaluation"]
        assert made["perplexity"]["protocol"]["bos"] == made["tasks"][asked["tasks"][0]]["bos"] == policy
        found.append(made["perplexity"]["dense"])
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ({"method": "wanda"}, {"sparsity": 0.59}),
        ({"method": "wanda"}, {"sequential": "true"}),
        ({"method": "sparsegpt"}, {"sequential": "true"}),
        ({"method": "wanda"}, {"pattern": {"name": "unstructured", "group": "matrix"}}),
        ({"method": "wanda"}, {"pattern": {"name": "unstructured", "group": "column-block", "block": 16}}),
        ({"method": "magnitude"}, {"pattern": {"name": "unstructured", "group": "row"}}),
        ({"score": "obs"}, {"pattern": {"name": "unstructured", "block": 16}}),
        ({"method": "refit"}, {"pattern": {"name": "unstructured", "block": 16}}),
        ({"method": "wanda"}, {"score": {"name": "wanda", "variant": True}}),
        ({"score": "obs"}, {"score": {"name": "obs", "damping": 0.5}}),
        ({"method": "sparsegpt"}, {"repair": {"name": "sparsegpt", "damping": 0.5}}),
        ({"method": "sparsegpt"}, {"repair": {"name": "sparsegpt", "block": 16}}),
        ({"score": "wanda", "repair": "refit"}, {"repair": {"name": "refit", "damping": 0.5}}),
        ({"score": "wanda", "repair": "refit"}, {"repair": {"name": "refit", "iterations": 1}}),
        ({"score": "wanda", "repair": "refit"}, {"repair": {"name": "refit", "tolerance": 0.5}}),
        ({"method": "wanda", "allocation": OWL}, {"allocation": OWL | {"m": 3}}),
        ({"method": "wanda", "allocation": OWL}, {"allocation": OWL | {"lam": 0.2}}),
        ({"method": "wanda", "allocation": OWL}, {"allocation": OWL | {"pooling": "layer"}}),
        ({"method": "wanda", "pattern": "4:8", "allocation": OWL}, {"allocation": OWL | {"lam": 4}}),
        ({"method": "wanda", "allocation": "alpha"}, {"allocation": {"name": "alpha", "epsilon": 0.1}}),
        ({"method": "wanda"}, {"refine": "dsnot"}),
        ({"method": "wanda", "refine": "dsnot"}, {"refine": {"name": "dsnot", "mlp": True}}),
        ({"method": "wanda", "pattern": "structured"}, {"pattern": {"name": "structured", "heads": False}}),
        (
            {"method": "wanda", "pattern": "structured"},
            {"pattern": {"name": "structured", "channels": False}},
        ),
    ],
    ids=str,
)
def test_changes_the_result(base: dict[str, Any], change: dict[str, Any]) -> None:
    assert not same(run(**base), run(**base | change))


def test_every_allocation_gives_another_result() -> None:
    chosen = [OWL if name == "owl" else EXPLICIT if name == "explicit" else name for name in names("allocation")]
    twins = {"erk": "er", "erk-plus": "er-plus"}  # a linear layer has no kernel, which alone tells them apart
    drawn = {
        str(allocation): run(method="wanda", allocation=allocation).masks.hash()
        for allocation in chosen
        if allocation != "gate-er"  # its gates are those of recurrent layers
    }
    for name in drawn.keys() & twins.keys() - {"erk-plus"}:
        assert drawn[name] == drawn[twins[name]]
    others = [mask for name, mask in drawn.items() if name not in twins]
    assert len(set(others)) == len(others)


@pytest.mark.parametrize("pattern", ["fan-in", "gates:2"])
def test_patterns_of_training_prune(pattern: str) -> None:
    result = run(method="magnitude", pattern=pattern, sparsity=0.6)
    assert not same(result, run(method="magnitude"))
    for name, layer in result.manifest["layers"].items():
        mask = result.masks[f"{name}.weight"]
        parts = mask.chunk(2) if pattern == "gates:2" else mask.split(1)
        assert len({int(part.sum()) for part in parts}) == 1
        assert abs(layer["nonzeros"] - 0.4 * layer["numel"]) <= len(parts)


@pytest.mark.parametrize("allocation", ["uniform", "er", "er-plus", "global", OWL, "alpha"], ids=str)
@pytest.mark.parametrize("method", ["magnitude", "sparsegpt"])
def test_every_allocation_keeps_the_budget_to_the_weight(method: str, allocation: Any) -> None:
    result = run(method=method, allocation=allocation)
    layers = result.manifest["layers"].values()
    numel = sum(layer["numel"] for layer in layers)
    assert sum(layer["nonzeros"] for layer in layers) == numel - round(0.6 * numel)
    for layer in layers:
        assert layer["target"] == pytest.approx(layer["sparsity"])


@pytest.mark.parametrize(("schema", "form"), [(1, "{}"), (2, "*.{}"), (2, "re:{}$")])
def test_an_explicit_map_is_followed(schema: int, form: str) -> None:
    shares = {form.format(name): share for name, share in (("down_proj", 0.9), ("q_proj", 0.0))}
    result = run(method="magnitude", schema=schema, allocation={"name": "explicit", "map": shares})
    shares = {name.rsplit(".", 1)[-1]: layer["sparsity"] for name, layer in result.manifest["layers"].items()}
    assert shares["down_proj"] == pytest.approx(0.9, abs=1e-3)
    assert shares["q_proj"] == 0.0
    assert result.sparsity == pytest.approx(0.6, abs=1e-4)


def test_exact_errors_change_the_errors_alone() -> None:
    plain, exact = (run(method="wanda", exact_errors=flag) for flag in (False, True))
    assert same(plain, exact)
    errors = [[layer["error"] for layer in result.manifest["layers"].values()] for result in (plain, exact)]
    assert all(one != other and other > 0 for one, other in zip(*errors, strict=True))


@pytest.mark.parametrize("sparsity", [0.0, 0.01])
def test_a_model_in_memory_with_too_few_zeros_to_pack_is_written_dense_and_that_is_said(
    sparsity: float, tmp_path: Path
) -> None:
    recipe = tiny.recipe(sparsity=sparsity, storage="packed")
    made = prune(tiny.model("llama", torch.bfloat16), recipe, calibration=tiny.tokens(), out=tmp_path / "out")
    assert "no weight has zeros enough" in made.manifest["fallbacks"][0]["what"]
    assert manifest.read(tmp_path / "out").storage == Checkpoint(tmp_path / "out").storage == "dense"


def test_targets_choose_the_layers() -> None:
    result = run(method="wanda", targets={"include": ["mlp"], "exclude": [r"layers\.1\."]})
    assert {name.split(".")[2] for name in result.masks} == {"0", "2"}
    assert all("mlp" in name for name in result.masks)
    assert sorted(result.manifest["layers"]) == sorted(name.removesuffix(".weight") for name in result.masks)
    left = [entry for entry in result.manifest["skipped"] if entry["reason"] == "left out by targets"]
    assert len(left) == 21 - 6


def test_globs_choose_exactly_the_layers_that_they_name() -> None:
    result = run(method="wanda", schema=2, targets={"include": ["*.q_proj"]})
    wanted = [f"model.layers.{index}.self_attn.q_proj" for index in range(3)]
    assert sorted(result.manifest["layers"]) == wanted
    assert result.manifest["recipe"]["schema"] == 2
    assert result.manifest["recipe"]["targets"]["include"] == ["*.q_proj"]


def test_layers_left_out_feed_the_ones_behind_them_dense() -> None:
    model = tiny.model("llama")
    result = run(method="wanda", targets={"include": [r"layers\.2\."]})
    found = dict(result.model.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(found[name], parameter) != name.startswith("model.layers.2.") or "norm" in name


def test_samples_and_context_are_heeded() -> None:
    many = tiny.tokens(samples=12)
    six = run(data=many, method="sparsegpt")
    assert same(six, run(data=many[:6], method="sparsegpt"))
    twelve = run(data=many, method="sparsegpt", calibration={"samples": 12})
    assert not same(six, twelve)
    assert twelve.manifest["data"]["calibration"]["samples"] == 12


def test_the_side_of_padding_is_heeded() -> None:
    ragged: list[Tensor] = [row[: 16 - i] for i, row in enumerate(tiny.tokens())]
    left, right = (run(data=ragged, method="wanda", calibration={"padding": side}) for side in ("left", "right"))
    assert left.masks == right.masks
    assert left.manifest["data"]["calibration"]["hash"] != right.manifest["data"]["calibration"]["hash"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"pattern": {"name": "unstructured", "block": 64}},
            r"pattern\.block=64 does not go with repair\.block=128",
        ),
        (
            {"score": {"name": "obs", "damping": 0.1}},
            r"score\.damping=0\.1 does not go with repair\.damping=0\.01",
        ),
    ],
    ids=str,
)
def test_settings_that_the_sweep_would_not_heed_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        tiny.recipe(**{"score": "obs", "repair": "sparsegpt"} | settings)


def test_settings_that_both_heed_may_be_given_twice() -> None:
    both = {"name": "unstructured", "block": 64}, {"name": "sparsegpt", "block": 64}
    one = run(score="obs", pattern=both[0], repair=both[1])
    assert same(one, run(score="obs", repair=both[1]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"resume": True}, "a model in memory begins anew"),
        ({"resume": True, "out": "somewhere"}, "a model in memory begins anew"),
        ({"overwrite": True}, "overwrite is about an output, and without out there is none"),
    ],
    ids=str,
)
def test_what_a_model_in_memory_could_not_heed_is_refused(given: dict[str, Any], message: str) -> None:
    model = tiny.model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(RecipeError, match=message):
        prune(model, tiny.recipe(), calibration=tiny.tokens(), **given)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
