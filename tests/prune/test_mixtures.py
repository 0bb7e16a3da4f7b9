"""Mixtures of experts, however they keep their experts, are pruned expert by expert and stay what they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.mixtures import CONFIGS, mixture
from tests.prune import tiny
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from lowdim.core.errors import RecipeError
from lowdim.core.registry import names
from lowdim.evaluate.inspect import inspect
from lowdim.infer.sparse.load import load as load_sparse
from lowdim.models.load import load, quiet
from lowdim.models.structure.routers import inputs_first, stacks
from lowdim.prune.api import prune
from lowdim.prune.keeper import NO_CODES


def kinds(quick: str, slow: str) -> list[Any]:
    return [*quick.split(), *(pytest.param(kind, marks=pytest.mark.nightly) for kind in slow.split())]


def experts(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the parameters that hold a matrix per expert."""
    return {
        f"{name}.{part}": model.get_submodule(name).get_parameter(part)
        for name, parts in stacks(model).items()
        for part in parts
    }


def zeros(weight: Tensor) -> list[float]:
    return [float((expert == 0).float().mean()) for expert in weight]


@pytest.mark.parametrize(
    "kind", kinds("qwen2-moe gpt-oss llama4", "mixtral qwen3-moe olmoe deepseek-v3 jetmoe nemotron-h")
)
def test_from_disk_to_disk_and_back(kind: str, tmp_path: Path) -> None:
    source = tiny.save_model(mixture(kind), tmp_path / "source")
    recipe = tiny.recipe(method="wanda", sparsity=0.5)
    result = prune(str(source), recipe, calibration=tiny.tokens(), out=tmp_path / "out")
    before, after = tiny.stored(source), tiny.stored(tmp_path / "out")
    assert {n: t.shape for n, t in before.items()} == {n: t.shape for n, t in after.items()}
    with quiet():
        made = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    memory = tiny.in_memory(mixture(kind), recipe)
    assert memory.model is not None
    idle = {entry["layer"] for entry in memory.manifest["fallbacks"]}
    for name, weight in experts(made).items():
        assert torch.equal(weight, memory.model.get_parameter(name)), name
        owner, _, part = name.rpartition(".")
        for index, share in enumerate(zeros(weight)):
            assert share == (0.0 if f"{owner}.{index}.{part}" in idle else 0.5), (name, index)
    changed = {n.removesuffix(".weight") for n in before if not torch.equal(before[n], after[n])}
    assert changed <= set(result.manifest["layers"])
    assert not [n for n in changed if "router" in n or n.endswith(("gate", "bias"))]
    assert {s["name"] for s in result.manifest["skipped"] if "router" in s["name"] or "gate" in s["name"]}
    assert torch.allclose(tiny.logits(load(tmp_path / "out")), tiny.logits(memory.model), atol=1e-6)
    told = inspect(str(tmp_path / "out")).to_dict()
    assert sum(layer["nonzeros"] for layer in told["layers"].values()) == sum(
        layer["nonzeros"] for layer in result.manifest["layers"].values()
    )
    assert {s["name"] for s in told["skipped"]} == {s["name"] for s in result.manifest["skipped"]}


@pytest.mark.parametrize("kind", kinds("gpt-oss", "qwen3-moe llama4 jetmoe"))
def test_packed_is_the_same_and_runs_sparse(kind: str, tmp_path: Path) -> None:
    source = tiny.save_model(mixture(kind), tmp_path / "source")
    for storage in ("dense", "packed"):
        prune(
            str(source), tiny.recipe(method="wanda", storage=storage), calibration=tiny.tokens(), out=tmp_path / storage
        )
    dense, packed = (tiny.stored(tmp_path / storage) for storage in ("dense", "packed"))
    assert all(torch.equal(dense[name], packed[name]) for name in dense)
    expected = tiny.logits(load(tmp_path / "dense"))
    assert torch.equal(tiny.logits(load(tmp_path / "packed")), expected)
    assert torch.allclose(tiny.logits(load_sparse(tmp_path / "packed", dtype="fp32")), expected, atol=1e-4)


@pytest.mark.parametrize("kind", kinds("gpt-oss", "mixtral jetmoe"))
@pytest.mark.parametrize("word", ["score", "repair", "refine"])
def test_every_method_keeps_the_counts_of_every_expert(kind: str, word: str) -> None:
    for name in sorted(names(word)):
        settings: dict[str, Any] = {"sparsity": 0.5, "score": "wanda"} | {word: name}
        try:
            result = tiny.in_memory(mixture(kind), tiny.recipe(**settings))
        except RecipeError:  # a combination that the recipe refuses
            continue
        assert result.model is not None
        idle = {entry["layer"] for entry in result.manifest["fallbacks"] if entry["what"].startswith("no calibration")}
        for full, weight in experts(result.model).items():
            owner, _, part = full.rpartition(".")
            left = [f"{owner}.{index}.{part}" in idle for index in range(len(weight))]
            assert zeros(weight) == [0.0 if spared else 0.5 for spared in left], (name, full)


@pytest.mark.parametrize("kind", ["gpt-oss", "olmoe"])
def test_an_expert_is_scored_on_the_tokens_that_are_routed_to_it(kind: str) -> None:
    model, seen = mixture(kind), dict[int, Tensor]()
    owner, parts = next(iter(stacks(model).items()))
    fused = model.get_submodule(owner)

    def note(module: object, args: tuple[Tensor, ...]) -> None:
        seen.update({e: args[0][(args[1] == e).any(1)].double() for e in range(4)})

    hook = fused.register_forward_pre_hook(note)
    tiny.logits(model)
    hook.remove()
    result = tiny.in_memory(model, tiny.recipe(method="wanda", sparsity=0.5))
    assert result.model is not None
    made = result.model.get_submodule(owner).get_parameter(parts[0])
    for e, x in seen.items():
        weight = fused.get_parameter(parts[0])[e].detach().double()
        weight, mask = (weight.t(), made[e].t() != 0) if inputs_first(fused, parts) else (weight, made[e] != 0)
        scores = weight.abs() * x.square().sum(0).sqrt()
        kept = scores >= scores.topk(weight.shape[1] // 2, dim=1).values[:, -1:]
        assert torch.equal(mask, kept), e


@pytest.mark.nightly
@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("pattern", ["2:4", "unstructured"])
def test_every_kind_with_padding_and_patterns(kind: str, pattern: str) -> None:
    recipe = tiny.recipe(method="sparsegpt", pattern=pattern, **({} if ":" in pattern else {"sparsity": 0.5}))
    result = tiny.in_memory(mixture(kind), recipe, tiny.padded())
    assert result.model is not None
    for weight in experts(result.model).values():
        assert set(zeros(weight)) <= {0.0, 0.5}


def test_rounded_experts_of_which_inputs_come_first_are_plain_values_and_said_to_be(tmp_path: Path) -> None:
    source = tiny.save_model(mixture("gpt-oss"), tmp_path / "source")
    recipe = tiny.recipe(method="wanda", quantize="int8")
    result = prune(str(source), recipe, calibration=tiny.tokens(), out=tmp_path / "out")
    plain = {entry["layer"] for entry in result.manifest["fallbacks"] if entry["what"] == NO_CODES}
    assert plain == {f"model.layers.{i}.mlp.experts.{part}" for i in range(2) for part in ("gate_up_proj", "down_proj")}
    levels = tiny.stored(tmp_path / "out")["model.layers.0.mlp.experts.down_proj"][0]
    assert all(len(column.abs().unique()) <= 128 for column in levels.t())
