"""SLoRB: sums of neighbouring inputs through a narrow matrix, beside a layer."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lowdim.core.errors import LowdimError
from lowdim.core.pattern import NM
from lowdim.models.structure.layers import find_layers
from lowdim.nn.slorb import SLoRB, add_slorb, attach, pruned_blocks, slorb_of

OUT, IN, K = 6, 32, 8


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(IN, OUT)


def mask_of(weight: Tensor) -> Tensor:
    return NM(2, 4).mask(weight.detach().abs(), weight.numel() // 2)


def dense_p(p: Tensor | None = None) -> Tensor:
    """Return P as the paper writes it, [in / k, in]."""
    ones = torch.ones(IN) if p is None else p
    return torch.block_diag(*ones.reshape(-1, 1, K).unbind(0))


def test_the_first_values_are_the_mean_or_the_sum_of_what_is_pruned() -> None:
    weight, mask = torch.tensor([[4.0, 1.0, -3.0, 2.0]]), torch.tensor([[True, False, True, False]])
    assert pruned_blocks(weight, mask, 4).tolist() == [[0.75]]
    assert pruned_blocks(weight, mask, 4, "sum").tolist() == [[3.0]]
    assert pruned_blocks(weight, mask, 2, "sum").tolist() == [[1.0, 2.0]]
    assert pruned_blocks(weight, torch.ones_like(mask), 4, "sum").tolist() == [[0.0]]


def test_a_fixed_p_is_a_sum_of_segments() -> None:
    torch.manual_seed(0)
    beside, x = SLoRB(IN, OUT, K), torch.randn(2, 5, IN)
    nn.init.normal_(beside.s)
    assert beside.p is None
    torch.testing.assert_close(beside(x), x @ dense_p().T @ beside.s.T)


def test_a_trained_p_has_the_values_and_gradients_of_the_blocks_of_the_dense_one() -> None:
    torch.manual_seed(0)
    beside, x = SLoRB(IN, OUT, K, trains_p=True, dtype=torch.float64), torch.randn(5, IN, dtype=torch.float64)
    assert beside.p is not None
    nn.init.normal_(beside.s)
    nn.init.normal_(beside.p)
    whole = dense_p(beside.p.detach()).requires_grad_()
    made, expected = beside(x), x @ whole.T @ beside.s.T
    torch.testing.assert_close(made, expected)
    made.square().sum().backward()
    (gradient,) = torch.autograd.grad(expected.square().sum(), whole)
    torch.testing.assert_close(beside.p.grad, gradient[dense_p() != 0])


def test_s_zero_is_off() -> None:
    model, other = nn.Sequential(layer()), nn.Sequential(layer())
    names = add_slorb(model, {"0": torch.ones(OUT, IN, dtype=torch.bool)}, K, trains_p=True)
    assert list(names) == ["0.slorb.s", "0.slorb.p"]
    x = torch.randn(3, IN)
    assert torch.equal(model(x), other(x))


@pytest.mark.parametrize("init", ["mean", "sum"])
def test_it_adds_what_pruning_took(init: str) -> None:
    model = nn.Sequential(layer())
    weight = model[0].weight
    mask = mask_of(weight)
    add_slorb(model, {"0.weight": mask}, K, init=init)
    dense = weight.detach().clone()
    with torch.no_grad():
        weight.masked_fill_(~mask, 0.0)
    # what is constant within a block loses nothing with the mean; the sum gives it back k times
    x = torch.randn(4, IN // K).repeat_interleave(K, 1)
    share = 1.0 if init == "mean" else K
    expected = nn.functional.linear(x, dense * mask + share * dense * ~mask, model[0].bias)
    torch.testing.assert_close(model(x), expected)


def test_gpt2s_layers_are_turned() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Conv1D(OUT, IN))
    weight = model[0].weight
    mask = mask_of(weight.t()).t()
    names = add_slorb(model, {"0": mask}, K, transposed={"0"})
    assert names["0.slorb.s"].shape == (OUT, IN // K)
    dense = weight.detach().clone()
    with torch.no_grad():
        weight.masked_fill_(~mask, 0.0)
    x = torch.randn(4, IN // K).repeat_interleave(K, 1)
    torch.testing.assert_close(model(x), x @ dense + model[0].bias)


def test_what_it_costs() -> None:
    fixed, trained = SLoRB(IN, OUT, K, dtype=torch.bfloat16), SLoRB(IN, OUT, K, True, dtype=torch.bfloat16)
    assert (fixed.nbytes, fixed.multiply_adds) == (2 * OUT * IN // K, OUT * IN // K)
    assert (trained.nbytes, trained.multiply_adds) == (2 * (OUT * IN // K + IN), OUT * IN // K + IN)


def test_layers_stay_what_they_are_and_copies_have_it_too() -> None:
    model = nn.Sequential(layer(), nn.ReLU())
    parameters = add_slorb(model, {"0.weight": mask_of(model[0].weight)}, K)
    assert type(model[0]) is nn.Linear
    assert [name for name, _ in find_layers(model)[0]] == ["0"]
    assert find_layers(model)[1] == [("0.slorb", "SLoRB is neither a plain Linear nor a Conv1D")]
    assert list(slorb_of(model)) == ["0"]
    assert all(dict(model.named_parameters())[name] is parameter for name, parameter in parameters.items())
    x = torch.randn(3, IN)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))
        nn.init.zeros_(other[0].slorb.s)
        assert not torch.equal(other(x), model(x))


def test_what_cannot_be_is_refused_and_changes_nothing() -> None:
    model = nn.Sequential(layer(), nn.ReLU(), nn.Linear(OUT, 4))
    masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters() if p.dim() == 2}
    with pytest.raises(LowdimError, match=r"2\.weight: SLoRB adds up k=8 .* does not divide 6; .* such as 2"):
        add_slorb(model, masks, K)
    assert not slorb_of(model)
    with pytest.raises(LowdimError, match=r"'1' is none"):
        add_slorb(model, {"1": masks["0.weight"]}, K)
    with pytest.raises(LowdimError, match=r"'3\.weight' is none"):
        add_slorb(model, {"3.weight": masks["0.weight"]}, K)
    add_slorb(model, masks, 2)
    with pytest.raises(LowdimError, match="0 has a SLoRB already"):
        add_slorb(model, masks, 2)
    with pytest.raises(LowdimError, match="Linear has a SLoRB already"):
        attach(model[0], SLoRB(IN, OUT, 2))
