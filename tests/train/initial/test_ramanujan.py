"""Masks chosen among random ones: the best of each layer, and the farthest from the dense network."""

import pytest
import torch
from tests.train.initial.nets import conv_net

from lowdim.core.random import derive_seed
from lowdim.evaluate.probe.full_spectrum import FullSpectrum
from lowdim.evaluate.probe.ramanujan import Ramanujan
from lowdim.train import FullSpectrumMasks, RamanujanMasks, RandomMasks, select
from lowdim.train.initial import full_spectrum, ramanujan

ONES = torch.ones(3, 3, dtype=torch.bool)
PATH = torch.eye(6).bool() | torch.eye(6).bool().roll(1, 0)  # one ring: 12 edges, degree 2
APART = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2), torch.ones(2, 2)).bool()  # three rings of 4


def test_of_a_ring_and_three_apart_the_ring_is_taken():
    # degree 2: the bound is 2; mu_hat of the ring is 2 cos(pi / 6) = 1.73, of three components 2
    gaps = [Ramanujan(minimum_degree=0).measure({"a": mask}).layers["a"].gap.delta_r for mask in (APART, PATH)]
    assert gaps == pytest.approx([0.0, 2 - 3**0.5])
    for measure in ("imdb", "delta_r"):
        drawn = [{"a": APART, "b": PATH}, {"a": PATH, "b": APART}]
        best = RamanujanMasks(measure=measure).pick(None, drawn)  # each layer its own
        assert torch.equal(best["a"], PATH)
        assert torch.equal(best["b"], PATH)


@pytest.mark.parametrize("measure", ["imdb", "delta_r"])
def test_no_sample_is_better_in_any_layer(measure):
    model = conv_net()
    found = RamanujanMasks(measure=measure, samples=4).masks(model, sparsity=0.6, seed=2)
    others = [RandomMasks().masks(model, sparsity=0.6, seed=derive_seed(2, "sample", n)) for n in range(4)]

    def numbers(masks):
        layers = Ramanujan(minimum_degree=0).measure(masks).layers
        return {n: layer.imdb if measure == "imdb" else layer.gap.delta_r for n, layer in layers.items()}

    best = numbers(found)
    assert all(best[name] >= number for other in others for name, number in numbers(other).items() if number == number)
    assert any(best[name] > number for name, number in numbers(others[0]).items())


def test_the_farthest_from_the_dense_network_is_taken():
    model = conv_net()
    found = FullSpectrumMasks(samples=4).masks(model, sparsity=0.6, seed=2)
    others = [RandomMasks().masks(model, sparsity=0.6, seed=derive_seed(2, "sample", n)) for n in range(4)]
    probe, weights = FullSpectrum(minimum_degree=0), select(model)
    dense = probe.coordinate({name: torch.ones_like(w).bool() for name, w in weights.items()}, weights)
    far = [probe.distance(dense, probe.coordinate(masks, weights)) for masks in others]
    assert max(far) > min(far)
    assert all(torch.equal(found[name], mask) for name, mask in others[far.index(max(far))].items())


def test_numbers_that_no_layer_has_count_nothing():
    probe = FullSpectrum(minimum_degree=0)
    point = probe.coordinate({"a": ONES[:1, :2]}, {"a": torch.ones(1, 2)})
    assert full_spectrum._distance(point, point) == 0.0
    assert ramanujan.Sampled.takes_classifier.fget(RamanujanMasks("erk-plus"))
