from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.prune import tiny
from transformers import PreTrainedModel

from lowdim.models.load import load
from lowdim.prune.api import prune

KINDS = ["mixtral", "qwen3-moe"]


def lopsided(kind: str) -> tuple[PreTrainedModel, set[int]]:
    """Return a model whose second block has no preference among its experts, and the experts that no token reaches."""
    model, chosen = tiny.model(kind), set[int]()
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.gate.weight").zero_()
    experts = model.get_submodule("model.layers.1.mlp.experts")
    hook = experts.register_forward_pre_hook(lambda _, args: chosen.update(args[1].unique().tolist()))
    tiny.logits(model)
    hook.remove()
    assert len(chosen) == 2
    return model, set(range(4)) - chosen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "settings",
    [
        {"method": "wanda"},
        {"method": "sparsegpt", "sequential": "true"},
        {"method": "wanda", "allocation": {"name": "owl", "m": 2}},
        {"method": "refit", "pattern": "2:4"},
        {"method": "wanda", "allocation": "global"},
    ],
    ids=str,
)
def test_an_expert_without_tokens_is_left_dense_and_reported(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    model, experts = lopsided(kind)
    result = tiny.in_memory(model, tiny.recipe(**settings))
    idle = [f"model.layers.1.mlp.experts.{e}.{part}" for e in experts for part in ("gate_up_proj", "down_proj")]
    fallbacks = result.manifest["fallbacks"]
    assert sorted(entry["layer"] for entry in fallbacks) == sorted(idle)
    assert {entry["what"] for entry in fallbacks} == {"no calibration token reached the layer; left dense"}
    for part in ("gate_up_proj", "down_proj"):
        before = model.get_parameter(f"model.layers.1.mlp.experts.{part}")
        after = result.model.get_parameter(f"model.layers.1.mlp.experts.{part}")
        assert [torch.equal(a, b) for a, b in zip(after, before, strict=True)] == [e in experts for e in range(4)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("storage", ["dense", "packed"])
def test_on_disk_its_tensors_are_dense_too(kind: str, storage: str, tmp_path: Path) -> None:
    model, idle = lopsided(kind)
    source = tiny.save_model(model, tmp_path / "model")
    recipe = tiny.recipe(method="wanda", storage=storage)
    result = prune(str(source), recipe, calibration=tiny.tokens(), out=tmp_path / "out")
    layers = {name: re.search(r"layers\.1\..*experts\.(\d)\.", name) for name in result.manifest["layers"]}
    experts = {name: int(found[1]) for name, found in layers.items() if found}
    assert len(experts) == 12
    for name, expert in experts.items():
        share = result.manifest["layers"][name]["sparsity"]
        assert share == (0.0 if expert in idle else pytest.approx(0.6, abs=0.02)), name
    memory = tiny.in_memory(model, tiny.recipe(method="wanda"))
    assert torch.equal(tiny.logits(load(tmp_path / "out")), tiny.logits(memory.model))


@pytest.mark.parametrize("kind", KINDS)
def test_magnitude_needs_no_tokens(kind: str) -> None:
    result = tiny.in_memory(lopsided(kind)[0], tiny.recipe(method="magnitude"))
    assert result.manifest["fallbacks"] == []
    after = result.model.get_parameter("model.layers.1.mlp.experts.down_proj")
    assert [round(float((expert == 0).float().mean()), 1) for expert in after] == [0.6] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_every_expert_is_scored_on_its_own_tokens(kind: str) -> None:
    model, seen = tiny.model(kind), dict[int, torch.Tensor]()
    experts = model.get_submodule("model.layers.0.mlp.experts")

    def note(module: object, args: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
        hidden, chosen, _ = args
        seen.update({e: hidden[(chosen == e).any(1)].double() for e in range(4)})

    hook = experts.register_forward_pre_hook(note)
    tiny.logits(model)
    hook.remove()
    result = tiny.in_memory(model, tiny.recipe(method="wanda", sparsity=0.5))
    made = result.model.get_parameter("model.layers.0.mlp.experts.gate_up_proj")
    for e, x in seen.items():
        weight = experts.gate_up_proj[e].detach().double()
        scores = weight.abs() * x.square().sum(0).sqrt()
        kept = scores >= scores.topk(16, dim=1).values[:, -1:]
        assert torch.equal(made[e] != 0, kept)
