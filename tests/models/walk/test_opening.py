"""Experts in 3-D parameters are seen one by one, while their module computes what it always did."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import pytest
import torch
from tests.models.mixtures import CONFIGS, mixture
from tests.models.zoo import VOCAB, ZOO
from torch import Tensor, nn
from transformers import PreTrainedModel

from lowdim.core.errors import LowdimError
from lowdim.data.batch import Batch
from lowdim.models.structure.layers import find_layers
from lowdim.models.structure.routers import stacks
from lowdim.models.walk.opening import OpenExperts, opened
from lowdim.models.walk.stream import Stream

STACKED = [kind for kind in CONFIGS if kind != "dbrx"]  # whose experts share one matrix


def tokens() -> Tensor:
    return torch.randint(1, VOCAB, (2, 11), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    out: Tensor = model(tokens(), use_cache=False).logits
    return out


def first(out: Any) -> Tensor:
    found: Tensor = out[0] if isinstance(out, tuple) else out
    return found


@pytest.mark.parametrize("kind", STACKED)
def test_the_same_bits_come_out_and_every_layer_hears_its_tokens(kind: str) -> None:
    model, heard = mixture(kind), dict[str, int]()
    expected = logits(model)
    parameters = dict(model.named_parameters())
    with opened(model) as lists:
        assert lists
        for name, layer in find_layers(model)[0]:
            layer.register_forward_pre_hook(
                lambda _, args, name=name: heard.__setitem__(name, heard.get(name, 0) + len(args[0]))
            )
        assert torch.equal(logits(model), expected)
        experts = [name for name, module in model.named_modules() if isinstance(module, OpenExperts)]
    assert {name: id(p) for name, p in model.named_parameters()} == {name: id(p) for name, p in parameters.items()}
    for name in experts:
        parts = {layer.rpartition(".")[2] for layer in heard if layer.startswith(f"{name}.")}
        assert parts == set(stacks(model)[name])
        counts = {
            sum(n for layer, n in heard.items() if layer.startswith(name) and layer.endswith(part)) for part in parts
        }
        assert len(counts) == 1, "each part of the experts hears of the same tokens"


@pytest.mark.parametrize("kind", ["mixtral", "gpt-oss", "llama4", "nemotron-h"])
@torch.no_grad()
def test_hooks_of_experts_act_once_and_see_the_module_itself(kind: str) -> None:
    model = mixture(kind)
    fused = model.get_submodule(next(iter(stacks(model))))
    plain, seen = logits(model), list[tuple[nn.Module, bool, bool]]()

    def before(module: nn.Module, args: Any) -> Any:
        seen.append((module, module.training, bool(torch.stack([arg.isnan().any() for arg in args]).any())))
        return (args[0] * 2, *args[1:])

    handles = [fused.register_forward_pre_hook(before), fused.register_forward_hook(lambda m, args, out: out + 1)]
    expected = logits(model)
    assert not torch.equal(expected, plain)
    stream = Stream(model.train())
    for _ in range(2):  # the first looks at how the model treats its blocks
        seen.clear()
        (streamed,) = stream.forward([Batch(tokens())])
    assert torch.equal(streamed, expected)
    assert seen == [(fused, False, False)]
    assert fused.training and not fused.__dict__.get("forward")
    for handle in handles:
        handle.remove()
    (streamed,) = stream.forward([Batch(tokens())])
    assert torch.equal(streamed, plain)


@pytest.mark.parametrize("kind", STACKED)
def test_a_write_to_a_layer_is_a_write_to_its_slice(kind: str) -> None:
    model = mixture(kind)
    name, parts = next(iter(stacks(model).items()))
    whole = model.get_submodule(name).get_parameter(parts[0])
    with opened(model) as lists, torch.no_grad():
        lists[0].layer(2, parts[0]).get_parameter("weight").zero_()
    assert not whole[2].any()
    assert whole[1].any() and whole[3].any()


@pytest.mark.parametrize("kind", ["mixtral", "gpt-oss", "llama4", "nemotron-h"])
@torch.no_grad()
def test_padding_is_heard_by_no_layer_and_other_tokens_come_out_as_before(kind: str) -> None:
    model = mixture(kind)
    name, parts = next(iter(stacks(model).items()))
    owner = model.get_submodule(name.rpartition(".")[0])
    x = torch.randn(3, 6, 32, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(18, dtype=torch.bool)
    mask[:4] = False
    expected = first(owner(x)).reshape(18, 32)
    with opened(owner) as [experts]:
        heard: list[int] = []
        for expert in experts:
            expert.get_submodule(parts[1]).register_forward_pre_hook(lambda _, args: heard.append(len(args[0])))
        owner(x.reshape(1, 18, 32)[:, mask])
        alone, heard[:] = sum(heard), []
        experts.token_mask = mask
        made = first(owner(x)).reshape(18, 32)
        assert experts.knows_padding
    assert sum(heard) == alone > 0
    assert torch.isfinite(made).all()
    assert torch.equal(made[mask], expected[mask])


@pytest.mark.parametrize("kind", ["mixtral", "gpt-oss", "llama4", "jetmoe", "nemotron-h"])
def test_gradients_reach_the_layers(kind: str) -> None:
    model = mixture(kind)
    name, parts = next(iter(stacks(model).items()))
    whole = model.get_submodule(name).get_parameter(parts[0])
    model(tokens(), labels=tokens(), use_cache=False).loss.backward()
    with opened(model) as lists:
        weights = [lists[0].layer(index, parts[0]).get_parameter("weight") for index in range(4)]
        for weight in weights:
            weight.requires_grad_()
        loss = model(tokens(), labels=tokens(), use_cache=False).loss
        found = torch.autograd.grad(loss, weights, allow_unused=True)
    for index, gradient in enumerate(found):
        wanted = whole.grad[index]
        assert torch.allclose(torch.zeros_like(wanted) if gradient is None else gradient, wanted, atol=1e-7)


def test_modules_come_back_after_an_error() -> None:
    model = mixture("mixtral")
    before = [(name, id(child)) for name, child in model.named_modules()]

    def interrupted() -> None:
        with opened(model):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [(name, id(child)) for name, child in model.named_modules()] == before


class Summed(nn.Module):
    """Experts of which no product has an expert's own input."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.num_experts, self.how = 3, how
        self.up_proj = nn.Parameter(torch.randn(3, 5, 5))

    def forward(self, x: Tensor) -> Any:
        if self.how == "einsum":
            return torch.einsum("ti,eoi->to", x, self.up_proj)
        if self.how == "merged":
            return x @ self.up_proj.mean(0)
        return x @ self.up_proj[1]  # as if it were [in, out], which nothing says


@pytest.mark.parametrize("how", ["einsum", "merged", "turned"])
def test_what_cannot_be_followed_is_refused_with_the_reason(how: str) -> None:
    block = nn.ModuleDict({"experts": Summed(how)})
    reason = "other way round" if how == "turned" else "uses the weights of its experts in"
    with opened(block), torch.no_grad(), pytest.raises(LowdimError, match=rf"Summed.*{reason}.*targets\.exclude"):
        block["experts"](torch.randn(4, 5))


@pytest.mark.parametrize("kind", ["mixtral", "qwen3-moe"])
def test_a_forward_that_experts_were_given_is_the_one_that_runs(kind: str) -> None:
    model = ZOO[kind]()
    for block in model.model.layers:
        experts = block.mlp.experts
        own = inspect.unwrap(type(experts).forward)
        experts.__dict__["forward"] = partial(lambda own, held, x, *args: own(held, 2 * x, *args), own, experts)
    ids = torch.arange(22).view(2, 11)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    [found] = Stream(model).forward([Batch(ids)])
    assert torch.allclose(found, expected, atol=1e-5)
