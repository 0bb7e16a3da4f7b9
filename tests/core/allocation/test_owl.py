import pytest
import torch

from lowdim.core.allocation import OWL, LayerInfo, ScannedLayer
from lowdim.core.errors import NumericalError, RecipeError

A = torch.tensor([[4.0, 2.0, 1.0, 0.4], [0.4, 0.3, 10.0, 0.02]])


def one_block(*pairs):
    return lambda: iter([[ScannedLayer(LayerInfo(f"l{i}", 0, w.shape), w, s) for i, (w, s) in enumerate(pairs)]])


def planted(outliers, width=20):
    """Build a block per number: ones, with that many weights of 100."""
    layers, blocks = [], []
    for b, count in enumerate(outliers):
        weights = [torch.ones(width, width), torch.ones(width, 2 * width)]
        weights[0].view(-1)[:count] = 100.0
        infos = [LayerInfo(f"{b}.{n}", b, w.shape) for n, w in enumerate(weights)]
        layers += infos
        blocks.append([ScannedLayer(i, w, torch.ones(w.shape[1])) for i, w in zip(infos, weights, strict=True)])
    return layers, lambda: iter(blocks)


def test_outlier_share_by_hand():
    # mean 2.265, threshold 4.53: one of eight
    layer, block = OWL(m=2).measure(one_block((A, None)))
    assert block == {0: 12.5}
    assert layer == {"l0": 12.5}


def test_the_scale_of_the_inputs_counts():
    weight = torch.tensor([[1, -2, 0.5, 4], [0.1, 0.3, -5, 0.2]])
    scale = torch.tensor([4.0, 1.0, 2.0, 0.1])
    assert OWL(m=2).measure(one_block((weight, scale)))[1] == {0: 12.5}
    assert OWL(m=2).measure(one_block((weight * 64, scale / 8)))[1] == {0: 12.5}


def test_a_block_has_one_mean_and_a_layer_its_own():
    quiet = torch.full((2, 4), 0.001)
    quiet[0, 0] = 0.01
    # together: mean 1.1335, threshold 2.267, two of A's eight and none of the others
    layer, block = OWL(m=2).measure(one_block((A, None), (quiet, None)))
    assert layer == {"l0": 25.0, "l1": 0.0}
    assert block == {0: 12.5}
    layer, block = OWL(m=2, pooling="layer").measure(one_block((A, None), (quiet, None)))
    assert layer == {"l0": 12.5, "l1": 12.5}
    assert block == {0: 12.5}


def test_exceeding_is_strict():
    assert OWL(m=1).measure(one_block((torch.ones(3, 3), None)))[1] == {0: 0.0}


def test_mapping_by_hand():
    infos = [LayerInfo(str(i), i, (5, 7)) for i in range(4)]
    found = OWL().spread(infos, {0: 4.0, 1: 1.0, 2: 1.0, 3: 2.0}, 0.7, 0.08)
    exact = [0.7 + 0.16 * (1 / 3 - d) for d in (1.0, 0.0, 0.0, 1 / 3)]
    assert [found[i] for i in range(4)] == pytest.approx(exact, abs=1e-12)
    assert [round(found[i], 4) for i in range(4)] == [0.5933, 0.7533, 0.7533, 0.7]


@pytest.mark.parametrize("lam", [0.02, 0.08, 0.2])
def test_mean_and_range(lam):
    layers, scan = planted([0, 3, 9, 1, 0])
    found = OWL(lam=lam).allocate(layers, 0.6, scan)
    values = list(found.sparsities.values())
    assert sum(s * i.numel for s, i in zip(values, layers, strict=True)) / 6000 == pytest.approx(0.6, abs=1e-12)
    assert max(values) - min(values) == pytest.approx(2 * lam, abs=1e-9)
    assert found.sparsities["2.0"] == found.sparsities["2.1"] == min(values)
    assert found.values["2.0"] > found.values["1.0"] > 0


def test_blocks_of_different_size_are_weighted():
    infos = [LayerInfo("a", 0, (10, 10)), LayerInfo("b", 1, (10, 30))]
    found = OWL().spread(infos, {0: 5.0, 1: 1.0}, 0.7, 0.08)
    assert found[0] * 100 + found[1] * 300 == pytest.approx(0.7 * 400, abs=1e-9)
    assert found[1] - found[0] == pytest.approx(0.16)


@pytest.mark.parametrize("outliers", [[0, 0, 0], [4, 4, 4], [2]])
def test_equal_blocks_are_uniform_to_the_bit(outliers):
    layers, scan = planted(outliers)
    assert set(OWL().allocate(layers, 0.7, scan).sparsities.values()) == {0.7}
    assert set(OWL().allocate_nm(layers, 3, 8, scan).sparsities.values()) == {0.625}


def test_no_range_is_uniform_to_the_bit():
    layers, scan = planted([0, 3, 9])
    assert set(OWL(lam=0.0).allocate(layers, 0.7, scan).sparsities.values()) == {0.7}


def test_clipping_keeps_the_mean():
    layers, scan = planted([0, 0, 0, 0, 0, 0, 0, 30])
    values = OWL(lam=0.2).allocate(layers, 0.95, scan).sparsities.values()
    assert max(values) <= 0.99
    assert sum(values) / len(values) == pytest.approx(0.95, abs=1e-9)


def keeps(found, group):
    counts = [(1 - s) * group for s in found.sparsities.values()]
    assert all(count == pytest.approx(round(count), abs=1e-9) for count in counts)
    return [round(count) for count in counts[::2]]


def test_mixed_nm_by_hand():
    # n_b = 4 + 2 * (D~ - mean): D~ = 1, 0, 0, 1/3 -> 5.33, 3.33, 3.33, 4.0; the one left over goes to the
    # largest remainder, of equal ones to the first
    layers, scan = planted([9, 0, 0, 3])
    assert keeps(OWL().allocate_nm(layers, 4, 8, scan), 8) == [6, 3, 3, 4]
    assert keeps(OWL(lam=0.0).allocate_nm(layers, 4, 8, scan), 8) == [4, 4, 4, 4]


@pytest.mark.parametrize("keep", range(1, 9))
@pytest.mark.parametrize("lam", [None, 6.0])
def test_mixed_nm_keeps_the_mean_and_at_least_one(keep, lam):
    layers, scan = planted([9, 0, 1, 3, 2, 5, 0])
    found = keeps(OWL(lam=lam).allocate_nm(layers, keep, 8, scan), 8)
    assert sum(found) == 7 * keep
    assert 1 <= min(found) <= max(found) <= 8


def test_mixed_nm_with_blocks_of_different_size_comes_near():
    layers = [LayerInfo(str(i), i, (8, 8 * (i + 1))) for i in range(5)]
    weights = [torch.ones(info.rows, info.cols) for info in layers]
    for i, weight in enumerate(weights):
        weight.view(-1)[: i % 3] = 100
    scan = lambda: iter([[ScannedLayer(i, w, None)] for i, w in zip(layers, weights, strict=True)])  # noqa: E731
    found = OWL().allocate_nm(layers, 4, 8, scan).sparsities
    mean = sum(found[i.name] * i.numel for i in layers) / sum(i.numel for i in layers)
    assert abs(mean - 0.5) <= 5 / 15 / 8 / 2


def test_nan_is_named():
    with pytest.raises(NumericalError, match="l1"):
        OWL().measure(one_block((A, None), (A, torch.full((4,), float("nan")))))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"m": 0}, "got 0"), ({"lam": -0.1}, r"got -0\.1"), ({"pooling": "blok"}, "Did you mean 'block'")],
)
def test_impossible_settings(settings, message):
    with pytest.raises(RecipeError, match=message):
        OWL(**settings)


def test_a_range_for_nm_is_none_for_single_weights():
    layers, scan = planted([0, 3])
    with pytest.raises(RecipeError, match=r"cannot exceed 0\.5; got 2"):
        OWL(lam=2.0).allocate(layers, 0.5, scan)
