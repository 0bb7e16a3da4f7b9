from __future__ import annotations

import copy

import pytest
import torch
from tests.models.zoo import ZOO
from torch import Tensor, nn

from lowdim.models.walk.experts import ExpertList, is_fused, opened

KINDS = ["mixtral", "qwen3-moe"]


def moe(kind: str) -> nn.Module:
    """Return the mixture of the second block."""
    return ZOO[kind]().get_submodule("model.layers.1.mlp")


def hidden(seed: int = 0) -> Tensor:
    return torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(seed))


def output(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        out = module(x)
    found: Tensor = out[0] if isinstance(out, tuple) else out
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_opened_experts_compute_the_same(kind: str) -> None:
    module = moe(kind)
    expected = output(module, hidden())
    with opened(module) as lists:
        assert [len(experts) for experts in lists] == [4]
        assert torch.allclose(output(module, hidden()), expected, atol=1e-6)
    assert torch.equal(output(module, hidden()), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_write_to_an_expert_is_a_write_to_the_fused_weight(kind: str) -> None:
    module = moe(kind)
    fused = module.experts.gate_up_proj
    with opened(module) as [experts], torch.no_grad():
        experts[2].gate_up_proj.weight.zero_()
    assert module.experts.gate_up_proj is fused
    assert not fused[2].any()
    assert fused[1].any()


@pytest.mark.parametrize("kind", KINDS)
def test_masked_tokens_are_routed_nowhere_and_the_others_as_before(kind: str) -> None:
    module, x = moe(kind), hidden()
    expected = output(module, x)
    mask = torch.ones(18, dtype=torch.bool)
    mask[:4] = False
    with opened(module) as [experts]:
        experts.token_mask = mask
        seen = [0]
        for expert in experts:
            expert.register_forward_pre_hook(lambda _, args: seen.__setitem__(0, seen[0] + len(args[0])))
        made = output(module, x)
    assert seen == [14 * 2]
    assert torch.allclose(made.reshape(18, 32)[mask], expected.reshape(18, 32)[mask], atol=1e-6)


def test_an_expert_that_no_token_chose_is_not_called() -> None:
    module = moe("mixtral")
    with opened(module) as [experts]:
        called: list[int] = []
        for index, expert in enumerate(experts):
            expert.register_forward_pre_hook(lambda *_, index=index: called.append(index))
        experts(torch.zeros(3, 32), torch.tensor([[0, 2]] * 3), torch.full((3, 2), 0.5))
    assert called == [0, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_the_modules_and_their_order_come_back_after_an_error(kind: str) -> None:
    module = moe(kind)
    before = [(name, id(child)) for name, child in module.named_modules()]

    def interrupted() -> None:
        with opened(module):
            assert isinstance(module.experts, ExpertList)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [(name, id(child)) for name, child in module.named_modules()] == before


def test_what_is_laid_out_in_another_way_is_not_opened() -> None:
    fused = copy.copy(moe("mixtral").experts)
    assert is_fused(fused)
    assert not is_fused(nn.Linear(2, 2))
    for attribute in ("is_transposed", "has_bias"):
        other = copy.copy(fused)
        setattr(other, attribute, True)
        assert not is_fused(other)
    fused.down_proj = nn.Parameter(torch.zeros(4, 32, 5))
    assert not is_fused(fused)
