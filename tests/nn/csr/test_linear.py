from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from lowdim.core.errors import LowdimError
from lowdim.nn.csr.linear import CSRLinear
from lowdim.nn.csr.swap import sparse_


def made(seed: int = 0, in_features: int = 20, out_features: int = 12, kept: int = 50) -> CSRLinear:
    return CSRLinear.random(in_features, out_features, kept, seed=seed, name="layer")


def test_from_linear_and_back() -> None:
    linear = nn.Linear(20, 12)
    mask = torch.rand(12, 20, generator=torch.Generator().manual_seed(0)) < 0.3
    layer = CSRLinear.from_linear(linear, mask)
    assert torch.equal(layer.positions(), mask.flatten().nonzero().flatten())
    assert torch.equal(layer.dense(), linear.weight.detach() * mask)
    back = layer.to_linear()
    x = torch.randn(5, 20, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(x), back(x))
    assert torch.equal(back.weight.detach(), linear.weight.detach() * mask)


def test_a_kept_zero_stays_kept() -> None:
    linear = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(linear.weight)
    assert CSRLinear.from_linear(linear, torch.tensor([[True, False]])).kept == 1


def test_weight_at() -> None:
    layer = CSRLinear(3, 2, torch.tensor([1, 5]), torch.tensor([2.0, -1.0]))
    assert layer.weight_at(torch.tensor([0, 1, 4, 5])).tolist() == [0.0, 2.0, 0.0, -1.0]
    assert CSRLinear(3, 2, torch.tensor([], dtype=torch.int64)).weight_at(torch.tensor([3])).tolist() == [0.0]


def test_random_layers_depend_on_seed_and_name_alone() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    a, b = made(), made()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(a.positions(), b.positions())
    assert torch.equal(a.values, b.values)
    assert not torch.equal(a.positions(), made(seed=1).positions())
    assert a.kept == 50
    assert float(a.values.detach().abs().max()) <= 1 / (50 / 12) ** 0.5


def test_a_weight_that_could_never_be_dense() -> None:
    layer = CSRLinear.random(10**6, 10**6, 1000, bias=False)
    x = torch.zeros(2, 10**6)
    column = int(layer.col[0])
    x[1, column] = 3.0
    y = layer(x)
    assert float(y[1].detach().abs().sum()) == pytest.approx(3 * float(layer.values[0].detach().abs()), rel=1e-6)
    y.sum().backward()
    assert layer.values.grad is not None
    assert int((layer.values.grad != 0).sum()) == int((layer.col == column).sum())


def test_state_of_another_size_loads() -> None:
    a, b = made(kept=50), made(seed=1, kept=70)
    parameter = a.values
    file = io.BytesIO()
    torch.save(b.state_dict(), file)
    file.seek(0)
    a.load_state_dict(torch.load(file, weights_only=True))
    assert a.values is parameter
    x = torch.randn(3, 20)
    assert torch.equal(a(x), b(x))
    assert a.kept == 70
    with torch.no_grad():
        b.values.zero_()
    assert not torch.equal(a(x), b(x))


def test_a_damaged_state_is_refused_and_changes_nothing() -> None:
    a, before = made(), copy.deepcopy(made().state_dict())
    for name, wrong in (
        ("values", torch.zeros(3)),
        ("values", before["values"].double()),
        ("col", before["col"] + 20),
        ("row_ptr", before["row_ptr"][:-1]),
    ):
        with pytest.raises(RuntimeError, match="Error"):
            a.load_state_dict({**before, name: wrong})
        assert torch.equal(a.values, before["values"])
    missing = {key: value for key, value in before.items() if key != "col"}
    with pytest.raises(RuntimeError, match="Missing"):
        a.load_state_dict(missing)


def test_copies_share_nothing() -> None:
    a = made()
    b = copy.deepcopy(a)
    with torch.no_grad():
        b.values.zero_()
    assert bool(a.values.any())


def test_other_types_and_devices_are_refused() -> None:
    layer = made()
    with pytest.raises(LowdimError, match="bfloat16"):
        layer.to(torch.bfloat16)
    with pytest.raises(LowdimError, match="fp32"):
        layer(torch.zeros(2, 20, dtype=torch.float64))
    with pytest.raises(LowdimError, match=r"\[\.\.\., 20\]"):
        layer(torch.zeros(2, 21))
    assert layer.to(torch.float32) is layer
    with pytest.raises(LowdimError, match="fp32"):
        CSRLinear.from_linear(nn.Linear(2, 2, dtype=torch.float64), torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(LowdimError, match="mask must be bool"):
        CSRLinear.from_linear(nn.Linear(2, 2), torch.ones(2, 2))
    with pytest.raises(LowdimError, match="kept must be"):
        CSRLinear.random(2, 2, 5)


def test_under_autocast_it_computes_in_fp32() -> None:
    layer = made()
    x = torch.randn(2, 20)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x.bfloat16())
    assert y.dtype == torch.float32
    assert torch.equal(y, layer(x.bfloat16().float()))


def test_frozen_layers_stay_frozen() -> None:
    linear = nn.Linear(4, 4).requires_grad_(False)
    layer = CSRLinear.from_linear(linear, torch.eye(4, dtype=torch.bool))
    assert not layer.values.requires_grad
    assert not layer(torch.ones(1, 4)).requires_grad


# ---------------------------------------------------------------- a whole model


def test_swap_by_name() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.ModuleDict({"head": nn.Linear(8, 2)}).get_submodule("head"))
    masks = {"0.weight": torch.rand(8, 6) < 0.5, "2": torch.rand(2, 8) < 0.5}
    dense = copy.deepcopy(model)
    assert sparse_(model, masks) is model
    assert [type(m) for m in model] == [CSRLinear, nn.ReLU, CSRLinear]
    with torch.no_grad():
        dense[0].weight.mul_(masks["0.weight"])
        dense[2].weight.mul_(masks["2"])
    x = torch.randn(3, 6)
    torch.testing.assert_close(model(x), dense(x))


def test_swaps_that_cannot_be() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    full = torch.ones(4, 4, dtype=torch.bool)
    with pytest.raises(LowdimError, match="not a linear layer"):
        sparse_(model, {"0": full, "2.weight": full})
    assert type(model[0]) is nn.Linear
    with pytest.raises(LowdimError, match="mask must be"):
        sparse_(model, {"0": full, "1": full[:2]})
    assert type(model[0]) is nn.Linear
    model[1].weight = model[0].weight
    with pytest.raises(LowdimError, match="tied"):
        sparse_(model, {"0": full})
    with pytest.raises(LowdimError, match="itself"):
        sparse_(model[0], {"": full})
