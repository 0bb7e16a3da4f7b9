"""Factorised layers: what they approximate, what they weigh, how they come and go."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lowdim.core.errors import LowdimError
from lowdim.nn.lowrank import LowRankLinear, dense_, factorise_, like_, train_factors_


def layer(rows: int = 12, cols: int = 8) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(cols, rows)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 12))


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_it_begins_as_the_best_approximation_of_the_layer(rank: int) -> None:
    dense = layer()
    found = LowRankLinear.of(dense, rank)
    left = torch.linalg.svdvals(dense.weight)[rank:].square().sum().sqrt()
    assert torch.allclose((found.a @ found.b - dense.weight).norm(), left, atol=1e-5)
    assert torch.allclose(found.a.norm(dim=0), found.b.norm(dim=1), atol=1e-5)  # the roots are shared out
    assert found.a.numel() + found.b.numel() == rank * (12 + 8)
    x = torch.randn(5, 8)
    assert torch.allclose(found(x), dense(x), atol=1e-5) == (rank == 8)
    back = found.dense()
    assert torch.allclose(back(x), found(x), atol=1e-5)


def test_a_layer_of_low_rank_loses_nothing() -> None:
    dense = layer()
    with torch.no_grad():
        dense.weight.copy_(torch.randn(12, 2) @ torch.randn(2, 8))
    found = LowRankLinear.of(dense, 2)
    assert torch.allclose(found.a @ found.b, dense.weight, atol=1e-5)


def test_fresh_factors_have_the_variance_of_a_fresh_layer() -> None:
    found = LowRankLinear(256, 200, rank=32)
    assert float((found.a @ found.b).detach().var()) == pytest.approx(1 / (3 * 256), rel=0.1)
    other = LowRankLinear(256, 200, rank=32)
    assert torch.equal(found.a, other.a)
    other.redraw_(seed=1)
    assert not torch.equal(found.a, other.a)


def test_a_model_is_factorised_trained_and_made_dense_again() -> None:
    model = net()
    factorise_(model, {"0": 2, "2": 8})
    assert isinstance(model[0], LowRankLinear) and isinstance(model[2], LowRankLinear)
    chosen = train_factors_(model)
    optimizer = torch.optim.SGD(chosen, lr=0.1)
    bias, before = model[0].bias.detach().clone(), model[0].a.detach().clone()  # type: ignore[union-attr]
    model(torch.ones(2, 8)).square().sum().backward()
    optimizer.step()
    assert torch.equal(bias, model[0].bias) and not torch.equal(before, model[0].a)  # type: ignore[arg-type]
    x = torch.randn(3, 8)
    wanted, other = model(x), net()
    like_(other, model.state_dict())
    assert torch.equal(other(x), wanted)
    dense_(model)
    assert [type(each) for each in model] == [nn.Linear, nn.LayerNorm, nn.Linear]
    assert torch.allclose(model(x), wanted, atol=1e-5)
    assert model.state_dict().keys() == net().state_dict().keys()


def test_random_factors_are_another_start() -> None:
    svd, random = net(), net()
    factorise_(svd, {"0": 4})
    factorise_(random, {"0": 4}, "random")
    dense = net()[0].weight
    error = [float((m[0].a @ m[0].b - dense).detach().norm()) for m in (svd, random)]
    assert error[0] < error[1]


def test_what_has_no_factors_is_refused() -> None:
    with pytest.raises(LowdimError, match="rank=9 of a layer 12 x 8 must be between 1 and 8"):
        LowRankLinear(8, 12, rank=9)
    model = net()
    for ranks, said in (({"1": 2}, "1 is no linear layer"), ({"0": 2, "2": 0}, "rank=0 of a layer")):
        with pytest.raises(LowdimError, match=said):
            factorise_(model, ranks)
        assert isinstance(model[0], nn.Linear)
    with pytest.raises(LowdimError, match="no factorised layer"):
        train_factors_(model)
    small = nn.Sequential(nn.Linear(4, 4))
    factorise_(small, {"0": 1})
    with pytest.raises(LowdimError, match="the state is of another model"):
        like_(net(), small.state_dict())
