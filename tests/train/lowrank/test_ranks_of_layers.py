"""Ranks of factorised layers: hand examples, budgets, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowdim.core.errors import LowdimError, NumericalError, RecipeError
from lowdim.core.recipe.families import build
from lowdim.train.lowrank.linear import LinearRank
from lowdim.train.lowrank.uniform import UniformRank
from lowdim.train.lowrank.welore import WeLore, normalised


def of_spectrum(values: list[float], rows: int | None = None, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    size = len(values)
    left, right = (torch.linalg.qr(torch.randn(n, size, generator=source)).Q for n in (rows or size, size))
    return (left * torch.tensor(values)) @ right.T


def test_the_hand_example_of_welore() -> None:
    values = torch.tensor([10.0, 6.0, 3.0, 2.0, 1.0])
    assert torch.allclose(normalised(values), torch.tensor([1.0, 0.5556, 0.2222, 0.1111, 0.0]), atol=1e-4)
    assert WeLore().kept(values, 0.135) == 3
    assert WeLore(least=0.0).ranks({"a": of_spectrum(values.tolist())}, 0.6) == {"a": 3}
    assert WeLore().ranks({"a": of_spectrum(values.tolist())}, 0.6) == {}  # two of five are less than half
    assert WeLore().kept(torch.ones(4), 0.9) == 4  # no tail


def weights() -> dict[str, Tensor]:
    flat, steep = [10.0 - i / 3 for i in range(12)], [10.0 * 0.6**i for i in range(12)]
    return {
        "flat": of_spectrum(flat, seed=1),
        "steep": of_spectrum(steep, 16, seed=2),
        "other": of_spectrum(steep, seed=3),
    }


@pytest.mark.parametrize("keep", [0.3, 0.5, 0.7, 0.8, 1.0])
def test_as_many_directions_go_as_shall(keep: float) -> None:
    found = WeLore(least=0.0).ranks(weights(), keep)
    assert sum(found.get(name, 12) for name in weights()) == pytest.approx(keep * 36, abs=1.01)
    assert keep == 1.0 or found["steep"] < found.get("flat", 12)


def test_fewer_stay_the_less_is_kept() -> None:
    sums = [
        sum(WeLore(least=0.0).ranks(weights(), keep / 20).get(name, 12) for name in weights()) for keep in range(1, 21)
    ]
    assert sums == sorted(sums)


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
def test_a_budget_of_weights_is_kept_and_nearly_used(keep: float) -> None:
    shapes = {name: tuple(weight.shape) for name, weight in weights().items()}
    found = WeLore(of_what="weights").ranks(weights(), keep)
    dense = sum(m * n for m, n in shapes.values())
    assert WeLore.size(shapes, found) <= keep * dense
    assert WeLore.size(shapes, found) > (keep - 0.35) * dense
    with pytest.raises(RecipeError, match="less than one direction in every layer"):
        WeLore(of_what="weights").ranks(weights(), 0.01)


def test_ranks_of_depth() -> None:
    layers = {str(i): torch.zeros(16, 20) for i in range(5)}
    for slope in (-0.8, 0.0, 0.8):
        found = list(LinearRank(slope=slope).ranks(layers, 0.5).values())
        assert sum(found) / 5 == pytest.approx(8, abs=1)
        assert found == sorted(found, reverse=slope < 0)
    assert LinearRank(slope=0.0).ranks(layers, 0.5) == UniformRank().ranks(layers, 0.5)
    assert max(LinearRank(slope=1.0).ranks(layers, 0.9).values()) == 16


@pytest.mark.parametrize("slope", [-1.0, -0.6, -0.1, 0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize(
    "shapes", [[(16, 20)] * 12, [(7, 9)], [(8, 8), (30, 64)] * 5, [(64, 4)] * 3 + [(64, 40)]], ids=str
)
def test_the_mean_of_a_linear_map_is_what_is_asked_for(shapes: list[tuple[int, int]], slope: float) -> None:
    """Where shares end at all directions the others keep more: 12 layers at 0.9 and slope 1 have 14.4 and not 11.3."""
    layers = {str(i): torch.zeros(shape) for i, shape in enumerate(shapes)}
    full = [min(shape) for shape in shapes]
    for keep in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 1.0):
        found = list(LinearRank(slope=slope).ranks(layers, keep).values())
        assert sum(found) / len(found) == pytest.approx(keep * sum(full) / len(full), abs=1)
        assert all(1 <= rank <= most for rank, most in zip(found, full, strict=True))
        if len(set(full)) == 1:
            assert found == sorted(found, reverse=slope < 0)
            if keep * (1 + abs(slope)) <= 1 and len(full) > 1:  # nothing is held: the map of the formula itself
                depths = [2 * depth / (len(full) - 1) - 1 for depth in range(len(full))]
                assert found == [max(1, round(keep * (1 + slope * depth) * full[0])) for depth in depths]


@pytest.mark.parametrize("name", ["uniform", "linear", "welore"])
def test_every_rule_is_found_and_checks_its_share(name: str) -> None:
    rule: Any = build("rank", name)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    found = rule.of(model, ["0", "2"], 0.25)
    assert found and all(1 <= rank < 8 for rank in found.values())
    for keep in (0.0, 1.5):
        with pytest.raises(RecipeError, match="keep must be above 0 and at most 1"):
            rule.of(model, ["0"], keep)
    with pytest.raises(LowdimError, match="1 is no layer with a matrix"):
        rule.of(model, ["1"], 0.5)
    if name == "welore":
        with pytest.raises(NumericalError, match="x holds NaN or Inf"):
            rule.ranks({"x": torch.full((2, 2), float("nan"))}, 0.5)
