import math

import numpy as np
import pytest
import torch

from lowdim.core.errors import NumericalError
from lowdim.core.spectrum import eigenvalues, tail_exponent


def pareto(exponent, count=2000, seed=0):
    """Draw from a density proportional to x^-exponent above 1."""
    uniform = np.random.default_rng(seed).random(count)
    return np.sort((1 - uniform) ** (-1 / (exponent - 1)))


def weight_of(spectrum, seed=0):
    """Return a matrix whose squared singular values are ``spectrum``."""
    g = torch.Generator().manual_seed(seed)
    n = len(spectrum)
    left = torch.linalg.qr(torch.randn(2 * n, n, generator=g, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64)).Q
    return left * torch.from_numpy(np.sqrt(spectrum)) @ right


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (1, 9), (9, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eigenvalues_are_squared_singular_values(shape, dtype):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = torch.linalg.svdvals(weight.double()).square().flip(0)
    np.testing.assert_allclose(eigenvalues(weight), expected.numpy(), rtol=1e-9)


def test_zero_eigenvalues_are_left_out():
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    weight[:, 10:] = weight[:, :10].repeat(1, 2)
    assert len(eigenvalues(weight)) == 10
    assert len(eigenvalues(torch.zeros(4, 4))) == 0
    assert len(eigenvalues(torch.zeros(0, 4))) == 0


def test_nan_is_refused():
    with pytest.raises(NumericalError, match="NaN or Inf"):
        eigenvalues(torch.full((2, 2), float("nan")))


def test_hill_by_hand():
    # i = 2, n = 2: 1 + 2 / (ln 4 + ln 8 - 2 ln 4) = 1 + 2 / ln 2
    assert tail_exponent(np.array([1.0, 2.0, 4.0, 8.0]), "xmin_mid") == pytest.approx(1 + 2 / math.log(2))
    assert tail_exponent(np.array([1.0, 2.0, 4.0, 8.0]), "xmin_mid") == pytest.approx(3.8854, abs=1e-4)


@pytest.mark.parametrize("exponent", [2.0, 3.0, 4.5])
@pytest.mark.parametrize("estimator", ["xmin_mid", "xmin_peak", "none"])
def test_a_known_exponent_is_recovered(exponent, estimator):
    assert tail_exponent(pareto(exponent), estimator) == pytest.approx(exponent, rel=0.06)


@pytest.mark.parametrize("estimator", ["xmin_mid", "none"])
def test_through_a_matrix_and_at_any_scale(estimator):
    spectrum = pareto(3.0, 150)
    weight = weight_of(spectrum)
    expected = tail_exponent(spectrum, estimator)
    for scale in (1.0, 1e-3, 1e3):
        assert tail_exponent(eigenvalues(weight * scale), estimator) == pytest.approx(expected, rel=1e-5)


def test_the_peak_estimator_ignores_the_scale_while_its_lower_limit_sleeps():
    # log10(0.95 p) < 0 for every peak p below 1.05, so that the limit then admits all values
    spectrum = pareto(3.0, 500) * 0.5
    assert tail_exponent(spectrum / 8) == pytest.approx(tail_exponent(spectrum), rel=1e-9)


def test_the_peak_estimator_searches_between_its_limits():
    spectrum = np.sort(np.random.default_rng(0).lognormal(0.0, 1.5, 400))
    counts, edges = np.histogram(np.log10(spectrum), bins=100)
    peak = 10 ** edges[counts.argmax()]
    best = (math.inf, math.nan)
    for i, start in enumerate(spectrum[:-1]):
        if math.log10(0.95 * peak) <= start <= 1.5 * peak:
            tail = spectrum[i:]
            alpha = 1 + len(tail) / np.log(tail / start).sum()
            fitted = 1 - (tail / start) ** (1 - alpha)
            best = min(best, (np.abs(fitted - np.arange(len(tail)) / len(tail)).max(), alpha))
    assert tail_exponent(spectrum, "xmin_peak") == pytest.approx(best[1], rel=1e-9)


@pytest.mark.parametrize("estimator", ["xmin_mid", "xmin_peak", "none"])
@pytest.mark.parametrize("spectrum", [[], [2.0], [3.0, 3.0, 3.0, 3.0]])
def test_too_little_to_fit_gives_nan(spectrum, estimator):
    assert math.isnan(tail_exponent(np.array(spectrum), estimator))


def test_unknown_estimator():
    with pytest.raises(ValueError, match="Did you mean 'xmin_mid'"):
        tail_exponent(np.array([1.0, 2.0]), "xmin_midd")
