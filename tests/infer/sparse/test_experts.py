from __future__ import annotations

import copy

import pytest
import torch
from tests.models.mixtures import mixture
from tests.models.zoo import ZOO
from torch import Tensor, nn

from lowdim.infer.sparse.experts import ExpertList, is_fused
from lowdim.models.structure.routers import stacks

KINDS = ["mixtral", "qwen3-moe"]


def moe(kind: str) -> nn.Module:
    """Return the mixture of the second block."""
    return ZOO[kind]().get_submodule("model.layers.1.mlp")


def output(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        out = module(x)
    found: Tensor = out[0] if isinstance(out, tuple) else out
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_of_experts_computes_the_same_and_shares_the_weights(kind: str) -> None:
    module, x = moe(kind), torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    expected, fused = output(module, x), module.experts
    module.experts = ExpertList(fused)
    assert torch.allclose(output(module, x), expected, atol=1e-6)
    with torch.no_grad():
        module.experts[2].gate_up_proj.weight.zero_()
    assert not fused.gate_up_proj[2].any()
    assert fused.gate_up_proj[1].any()


def test_an_expert_that_no_token_chose_is_not_called() -> None:
    experts = ExpertList(moe("mixtral").experts)
    called: list[int] = []
    for index, expert in enumerate(experts):
        expert.register_forward_pre_hook(lambda *_, index=index: called.append(index))
    experts(torch.zeros(3, 32), torch.tensor([[0, 2]] * 3), torch.full((3, 2), 0.5))
    assert called == [0, 2]


ALIKE = {"mixtral", "qwen2-moe", "qwen3-moe", "olmoe", "deepseek-v3", "hunyuan"}


@pytest.mark.parametrize("kind", [*sorted(ALIKE), "gpt-oss", "llama4", "jetmoe", "nemotron-h", "longcat"])
def test_only_what_computes_the_same_counts_as_fused(kind: str) -> None:
    model = mixture(kind)
    assert {is_fused(model.get_submodule(name)) for name in stacks(model)} == {kind in ALIKE}


def test_another_layout_another_gate_or_another_norm_is_not_fused() -> None:
    fused = copy.copy(moe("mixtral").experts)
    assert is_fused(fused)
    assert not is_fused(nn.Linear(2, 2))

    class Normed(type(fused)):  # type: ignore[misc]
        def forward(self, *args: Tensor) -> Tensor:
            return nn.functional.normalize(super().forward(*args))

    other = copy.copy(fused)
    other.__class__ = Normed
    assert not is_fused(other)
    other = copy.copy(fused)
    other._parameters = {**fused._parameters, "down_proj": nn.Parameter(torch.zeros(4, 32, 5))}
    assert not is_fused(other)
