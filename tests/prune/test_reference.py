"""Whole models pruned by the package and by a naive loop over hooks give the same masks and weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.prune import reference, tiny
from torch import Tensor

from lowdim.nn.blocks import find_blocks

KINDS = ["llama-untied-bias", "qwen3", "gemma3", "opt", "gpt2", "gpt-neox", "phi", "falcon", "bloom"]

MANY = {"input_ids": tiny.tokens(samples=24)}  # more tokens than inputs, so that rounding is not magnified


def both(
    kind: str, rule: reference.Rule, data: dict[str, Tensor] | None = None, **settings: Any
) -> list[tuple[str, Tensor, Tensor]]:
    """Return (parameter, expected, made) of every pruned layer."""
    naive = tiny.model(kind)
    given = {"input_ids": tiny.tokens()} if data is None else data
    reference.walk(naive, find_blocks(naive)[1], given["input_ids"], rule, given.get("attention_mask"))
    recipe = tiny.recipe(calibration={"samples": len(given["input_ids"])}, **settings)
    result = tiny.in_memory(tiny.model(kind), recipe, [given])
    expected = dict(naive.named_parameters())
    found = tiny.weights(result)
    assert len(found) >= 12
    return [(name, expected[name].detach(), made) for name, made in found.items()]


@pytest.mark.parametrize("kind", KINDS)
def test_wanda_equals_the_naive_loop(kind: str) -> None:
    for name, expected, made in both(kind, reference.wanda(0.5), method="wanda", sparsity=0.5):
        assert torch.equal(made, expected), name


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_wanda_by_groups_equals_the_naive_loop(kind: str) -> None:
    for name, expected, made in both(kind, reference.wanda_nm(1, 4), method="wanda", pattern="1:4"):
        assert torch.equal(made, expected), name


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "bloom"])
def test_wanda_equals_the_naive_loop_with_padding(kind: str) -> None:
    data = tiny.padded()[0]
    for name, expected, made in both(kind, reference.wanda(0.75), data, method="wanda", sparsity=0.75):
        assert torch.equal(made, expected), name


@pytest.mark.parametrize("kind", KINDS)
def test_magnitude_equals_the_naive_loop(kind: str) -> None:
    for name, expected, made in both(kind, reference.magnitude(0.5), method="magnitude", sparsity=0.5):
        assert torch.equal(made, expected), name


def close(made: Tensor, expected: Tensor, tolerance: float) -> bool:
    return float((made - expected).norm() / expected.norm()) < tolerance


@pytest.mark.parametrize("kind", ["llama", "gpt2", "falcon"])
def test_sparsegpt_equals_the_naive_loop(kind: str) -> None:
    def rule(weight: Tensor, x: Tensor) -> Tensor:
        return reference.sparsegpt(weight, reference.hessian(x, 0.01), reference.by_blocks(0.5))[0]

    for name, expected, made in both(kind, rule, MANY, method="sparsegpt", sparsity=0.5):
        assert torch.equal(made != 0, expected != 0), name
        assert close(made, expected, 1e-4), name


def test_sparsegpt_by_groups_equals_the_naive_loop() -> None:
    def rule(weight: Tensor, x: Tensor) -> Tensor:
        return reference.sparsegpt(weight, reference.hessian(x, 0.01), reference.by_groups(2, 4))[0]

    for name, expected, made in both("llama", rule, MANY, method="sparsegpt", pattern="2:4"):
        assert torch.equal(made != 0, expected != 0), name
        assert close(made, expected, 1e-5), name


def test_refit_equals_the_naive_loop() -> None:
    def rule(weight: Tensor, x: Tensor) -> Tensor:
        kept = reference.wanda(0.5)(weight, x) != 0
        return reference.least_squares(weight, kept, reference.hessian(x, 0.01))

    exact = {"name": "refit", "tolerance": 1e-7}
    for name, expected, made in both("llama", rule, MANY, score="wanda", repair=exact, sparsity=0.5):
        assert torch.equal(made != 0, expected != 0), name
        assert close(made, expected, 1e-4), name


def test_true_sequential_pruning_equals_the_naive_loop_group_by_group() -> None:
    groups = [("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)]
    naive = tiny.model("llama")
    reference.walk(naive, find_blocks(naive)[1], tiny.tokens(), reference.wanda(0.5), groups=groups)
    expected = dict(naive.named_parameters())
    turn = tiny.in_memory(tiny.model("llama"), tiny.recipe(method="wanda", sparsity=0.5, sequential="true"))
    once = tiny.in_memory(tiny.model("llama"), tiny.recipe(method="wanda", sparsity=0.5))
    for name, made in tiny.weights(turn).items():
        assert torch.equal(made, expected[name]), name
    differ = [name for name, made in tiny.weights(once).items() if not torch.equal(made, expected[name])]
    assert any("o_proj" in name for name in differ)
    assert any("layers.0.mlp.down_proj" in name for name in differ)
    assert not any("layers.0.self_attn.q_proj" in name for name in differ)
