"""What holds for every registered score."""

import dataclasses

import pytest
import torch

from lowdim.core import registry
from lowdim.core.pattern import Unstructured
from lowdim.core.score import Evidence
from lowdim.core.statistics import KINDS, InputStatistics

SCORES = [pytest.param(registry.find("score", name).load()(), id=name) for name in registry.names("score")]
SHAPES = [(6, 10), (1, 10), (6, 1), (1, 1)]


def draw(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def evidence(score, x, shape):
    """Return what a score is told of a layer, with a gradient as large as the inputs are."""
    stats = InputStatistics(x.shape[1], score.needs & KINDS)
    stats.add(x)
    return Evidence(stats, draw(shape, 2) * x.float().abs().sum())


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_not_negative_and_repeatable(score, shape, dtype):
    weight, x = draw(shape).to(dtype), draw((50, shape[1]), 1).to(dtype)
    first, again = (score.scores(weight, evidence(score, x, weight.shape)) for _ in range(2))
    assert first.shape == weight.shape
    assert first.dtype in (torch.float32, torch.float64)
    assert bool((first >= 0).all())
    assert torch.equal(first, again)
    assert torch.equal(weight, draw(shape).to(dtype))


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    "x", [torch.zeros(5, 10), torch.ones(5, 10), torch.empty(0, 10)], ids=["zeros", "ones", "none"]
)
def test_degenerate_inputs_and_weights_stay_finite(score, x):
    for weight in (torch.zeros(4, 10), draw((4, 10))):
        scores = score.scores(weight, evidence(score, x, weight.shape))
        assert bool(scores.isfinite().all())
        assert int(Unstructured().resolve(score.default_group).mask(scores, 13).sum()) == 13


@pytest.mark.parametrize("score", SCORES)
def test_a_zero_weight_is_never_worth_more(score):
    weight = draw((4, 10))
    weight[:, ::2] = 0
    scores = score.scores(weight, evidence(score, draw((50, 10), 1), weight.shape))
    assert float(scores[:, ::2].max()) <= float(scores[:, 1::2].min())


@pytest.mark.parametrize("score", SCORES)
def test_settings_are_plain_data(score):
    assert score.needs <= KINDS | {"gradient"}
    assert type(score)(**dataclasses.asdict(score)) == score


@pytest.mark.parametrize("score", SCORES)
def test_what_a_scan_compares_orders_weights_as_the_scores_do(score):
    weight = draw((6, 10))
    found = evidence(score, draw((50, 10), 1), weight.shape)
    matrix, scale = score.compared(found)(weight)
    product = matrix.abs() if scale is None else matrix.abs() * scale
    assert torch.equal(product.float(), score.scores(weight, found).float())
