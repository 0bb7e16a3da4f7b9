import pytest
import torch

from lowdim.core.allocation import AlphaPruning, LayerInfo, ScannedLayer
from lowdim.core.errors import RecipeError
from lowdim.core.spectrum import eigenvalues, tail_exponent

INFOS = [LayerInfo(name, i, (8, 8)) for i, name in enumerate("abc")]
ALPHAS = {"a": 2.0, "b": 3.0, "c": 4.0}


def spread(sparsity, epsilon=0.3, alphas=ALPHAS, infos=INFOS, mapping="block"):
    return list(AlphaPruning(epsilon=epsilon, mapping=mapping).spread(infos, alphas, sparsity).values())


def test_map_by_hand():
    assert spread(0.7) == pytest.approx([0.49, 0.7, 0.91])


def test_overflow_is_clipped_and_the_rest_keeps_its_ratio():
    # 0.56, 0.80, 1.04: the last is cut to 0.99, the others share 1.41 as 0.7 : 1
    assert spread(0.8) == pytest.approx([1.41 * 7 / 17, 1.41 * 10 / 17, 0.99])


def test_unequal_sizes_keep_the_weighted_mean():
    infos = [LayerInfo("a", 0, (8, 8)), LayerInfo("b", 1, (8, 24)), LayerInfo("c", 2, (8, 40))]
    found = spread(0.6, infos=infos)
    assert sum(s * i.numel for s, i in zip(found, infos, strict=True)) / 576 == pytest.approx(0.6, abs=1e-9)
    assert found[0] / found[1] == pytest.approx(0.7)


def test_equal_exponents_or_no_range_are_uniform_to_the_bit():
    assert spread(0.7, alphas=dict.fromkeys("abc", 3.3)) == [0.7] * 3
    assert spread(0.7, epsilon=0.0) == [0.7] * 3
    assert spread(0.7, alphas={}) == [0.7] * 3


def test_blocks_share_their_mean_and_layers_need_not():
    infos = [
        LayerInfo("a", 0, (8, 8)),
        LayerInfo("b", 0, (8, 8)),
        LayerInfo("c", 1, (8, 8)),
        LayerInfo("d", 1, (8, 8)),
    ]
    alphas = {"a": 2.0, "b": 4.0, "c": 4.0, "d": 5.0}
    assert spread(0.5, alphas=alphas, infos=infos) == pytest.approx([0.35, 0.35, 0.65, 0.65])
    own = spread(0.5, alphas=alphas, infos=infos, mapping="layer")
    assert own[0] < own[1] == own[2] < own[3]


def test_a_layer_without_an_exponent_takes_its_blocks():
    infos = [
        LayerInfo("a", 0, (8, 8)),
        LayerInfo("b", 0, (8, 8)),
        LayerInfo("c", 1, (8, 8)),
        LayerInfo("d", 2, (8, 8)),
    ]
    found = spread(0.5, alphas={"a": 2.0, "d": 4.0}, infos=infos, mapping="layer")
    assert found == pytest.approx([2.0 * phi / 3.7 for phi in (0.7, 0.7, 1.0, 1.3)])


def test_from_weights():
    g = torch.Generator().manual_seed(0)
    infos = [LayerInfo(f"{b}.{n}", b, (48, 32)) for b in range(3) for n in range(2)]
    # later blocks are more nearly orthogonal: lighter tails, to be pruned more
    weights = [torch.randn(48, 32, generator=g) * torch.linspace(1, 0.05 + 0.3 * i.block, 32) for i in infos]
    scanned = [ScannedLayer(i, w, None) for i, w in zip(infos, weights, strict=True)]
    method = AlphaPruning(estimator="xmin_mid")
    found = method.allocate(infos, 0.6, lambda: iter([scanned[i : i + 2] for i in (0, 2, 4)]))
    assert found.values == {
        i.name: tail_exponent(eigenvalues(w), "xmin_mid") for i, w in zip(infos, weights, strict=True)
    }
    assert found.sparsities["0.0"] == found.sparsities["0.1"] < found.sparsities["1.0"] < found.sparsities["2.0"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": 1.0}, r"got 1\.0"),
        ({"estimator": "peak"}, "unknown estimator"),
        ({"mapping": "blocks"}, "Did you mean 'block'"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(RecipeError, match=message):
        AlphaPruning(**settings)
