"""The numbers of one block, against cases worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from lowdim.core.errors import NumericalError
from lowdim.evaluate.diagnose.measures import Jacobian, Moments, Spectrum, angles, influences
from lowdim.train.riders.alphadecay import AlphaDecay


def test_angles_and_influences_of_known_vectors() -> None:
    east = torch.tensor([1.0, 0.0])
    others = torch.tensor([[5.0, 0.0], [1.0, 1.0], [0.0, 3.0], [-1.0, 0.0], [0.0, 0.0]])
    many = east.expand_as(others)
    assert angles(many, others).tolist() == pytest.approx([0.0, 0.25, 0.5, 1.0, 0.5])
    assert influences(many, others).tolist() == pytest.approx([0.0, 1 - math.sqrt(0.5), 1.0, 2.0, 0.5])
    assert float(angles(torch.zeros(2), torch.zeros(2))) == 0


def test_small_angles_keep_their_digits_and_equal_vectors_are_exactly_0_apart() -> None:
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    assert not angles(x, x).any()
    assert not influences(x, x.clone()).any()
    tilt = 1e-9  # arccos of the cosine, in fp64, is 0 here
    turned = torch.tensor([math.cos(tilt), math.sin(tilt)], dtype=torch.float64)
    assert float(angles(torch.tensor([1.0, 0.0], dtype=torch.float64), turned)) == pytest.approx(tilt / math.pi)


def test_moments_are_those_of_all_entries_together() -> None:
    parts = [1e3 + torch.randn(n, 5, generator=torch.Generator().manual_seed(n)) for n in (1, 7, 40)]
    seen = Moments()
    for part in parts:
        seen.add(part)
    together = torch.cat([part.flatten() for part in parts]).double()
    assert seen.mean == pytest.approx(float(together.mean()), rel=1e-12)
    assert seen.variance == pytest.approx(float(together.var(unbiased=False)), rel=1e-9)


def test_an_orthogonal_basis_of_probes_gives_the_norms_of_the_jacobian() -> None:
    """sqrt(n) e_i for every i: the sums over the probes are the Frobenius norms themselves."""

    def block(x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(x.cumsum(0)) @ weight

    weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(2)).requires_grad_()
    jacobian = torch.func.jacrev(block)(x.detach()).reshape(12, 12)
    seen = Jacobian()
    for place in range(12):
        probe = torch.zeros(12).index_fill(0, torch.tensor(place), math.sqrt(12)).view(3, 4)
        (pulled,) = torch.autograd.grad(block(x), x, probe)
        seen.add(probe, pulled)
    assert seen.distance == pytest.approx(float((jacobian - torch.eye(12)).norm()) / math.sqrt(12), rel=1e-5)
    assert seen.gain == pytest.approx(float(jacobian.norm()) / math.sqrt(12), rel=1e-5)
    assert seen.trace == pytest.approx(float(jacobian.trace()) / 12, rel=1e-5)


def test_spectra_of_known_matrices() -> None:
    flat = Spectrum.of(torch.eye(8)[:, :5])
    assert math.isnan(flat.alpha) and math.isnan(flat.hill)
    assert (flat.stable_rank, flat.entropy) == pytest.approx((5, 1))
    one = Spectrum.of(torch.ones(3, 4))
    assert (one.stable_rank, one.entropy) == pytest.approx((1, 0))
    assert math.isnan(Spectrum.of(torch.zeros(3, 3)).stable_rank)
    weight = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    assert Spectrum.of(weight).alpha == AlphaDecay(estimator="median").exponent(weight)
    assert Spectrum.of(weight).hill == AlphaDecay().exponent(weight)
    assert Spectrum.of(7 * weight).alpha == pytest.approx(Spectrum.of(weight).alpha)
    with pytest.raises(NumericalError):
        Spectrum.of(torch.full((2, 2), torch.nan))
