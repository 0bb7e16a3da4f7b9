"""GPAS: the identity at first, the gradient of the whole stream always, and what its gates fold into."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.nn.placement.decoders import FAMILIES, TOKENS, decoder, stir
from torch.nn.functional import silu

from lowdim.core.errors import LowdimError, RecipeError
from lowdim.core.recipe.families import build
from lowdim.nn.placement import GPAS
from lowdim.nn.residual.added import Gates

BELOW = ["pre-ln", "post-ln", "sandwich", "deepnorm", {"name": "mix-ln", "alpha": 0.5}, "lns"]


@pytest.mark.parametrize("below", BELOW, ids=str)
def test_gates_of_0_change_neither_loss_nor_gradients(below: Any) -> None:
    found = []
    for placement in (build("placement", below), GPAS(over=below)):
        model = decoder("llama")
        placement.apply_(model)
        loss = model(TOKENS, labels=TOKENS).loss
        loss.backward()
        found.append((loss, {n: p.grad for n, p in model.named_parameters() if "gpas" not in n}))
    (one, plain), (two, gated) = found
    assert torch.equal(one, two)
    assert plain.keys() == gated.keys() and all(torch.equal(plain[name], gated[name]) for name in plain)


def test_one_gate_by_hand() -> None:
    gates = Gates(1)
    x = torch.tensor([[1.0, -2.0], [3.0, 4.0]], requires_grad=True)
    upstream = torch.tensor([[0.5, 1.0], [-1.0, 2.0]])
    assert torch.equal(gates(x, 0), x)
    gates(x, 0).backward(upstream)
    assert torch.equal(x.grad, upstream)
    assert gates.gate.grad.item() == pytest.approx(-0.5 * float((x * upstream).sum().detach()))
    for value in (0.1, 0.7, -1.0):
        x.grad = None
        gates.gate.data.fill_(value)
        made = gates(x, 0)
        made.backward(upstream)
        assert torch.equal(x.grad, upstream)  # not the derivative of the forward pass, by design
        assert torch.allclose(made, (1 - silu(torch.tensor(value))) * x)
    gates.gate.data.fill_(0.1)
    assert gates(torch.ones(1), 0).item() == pytest.approx(0.9475, abs=5e-5)


def test_a_gate_per_block_or_per_branch() -> None:
    for gates, count in (("block", 1), ("branch", 2)):
        model = decoder("llama")
        GPAS(gates=gates).apply_(model)
        added = {n: tuple(p.shape) for n, p in model.named_parameters() if "gpas" in n}
        assert added == {f"model.layers.{i}.gpas.gate": (count,) for i in range(4)}


def test_gates_stay_fp32() -> None:
    model = decoder("llama")
    GPAS().apply_(model)
    model.model.layers[0].gpas.gate.data.fill_(1 / 3)
    model.bfloat16()
    gate = model.model.layers[0].gpas.gate
    assert gate.dtype == torch.float32 and float(gate.detach()) == float(torch.tensor(1 / 3))
    assert model(TOKENS).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_gates_fold(family: str, dtype: torch.dtype) -> None:
    model = decoder(family)
    GPAS(gates="branch").apply_(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5.0)  # streams well above the eps of the norms
    stir(model).to(dtype)
    before = model(TOKENS).logits
    GPAS(gates="branch").fold_(model)
    worst = (model(TOKENS).logits - before).abs().max() / before.std()
    assert worst < (1e-4 if dtype == torch.float32 else 0.2)


def gated(value: float, dtype: torch.dtype) -> Any:
    model = decoder("llama").to(dtype)
    GPAS().apply_(model)
    for block in model.model.layers:
        block.gpas.gate.data.fill_(value)
    return model


@pytest.mark.parametrize(
    ("gate", "dtype", "said"),
    [
        (1.3, torch.float32, "a gate above 1.278 turns the sign"),
        (1.2, torch.float16, "logits would change by nan"),
        (0.9, torch.float32, "logits would change by"),
    ],
)
def test_what_would_not_be_the_same_is_not_folded(gate: float, dtype: torch.dtype, said: str) -> None:
    """A stream that turns its sign, one that leaves the range of fp16, one that comes near the eps of the norms."""
    model = gated(gate, dtype)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = model(TOKENS).logits
    with pytest.raises(LowdimError, match=said):
        GPAS().fold_(model)
    assert torch.equal(model(TOKENS).logits, before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_gates_over_gates_are_refused() -> None:
    with pytest.raises(RecipeError, match="over has gates already"):
        GPAS(over=GPAS()).apply_(decoder("llama"))
