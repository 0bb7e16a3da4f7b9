import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowdim.core.allocation import Global, LayerInfo, ScannedLayer
from lowdim.core.budget import apportion
from lowdim.core.errors import NumericalError
from lowdim.core.topk import keep_top


def model(weights, scales=None):
    layers = [LayerInfo(f"l{i}", i // 2, w.shape) for i, w in enumerate(weights)]
    scanned = [
        ScannedLayer(i, w, None if scales is None else scales[k])
        for k, (i, w) in enumerate(zip(layers, weights, strict=True))
    ]
    return layers, lambda: iter([scanned[i : i + 2] for i in range(0, len(scanned), 2)])


def check(weights, sparsity, scales=None):
    """Compare with a top-k over the concatenation."""
    layers, scan = model(weights, scales)
    found = Global().allocate(layers, sparsity, scan).sparsities
    scores = [w.abs() if scales is None else w.abs() * scales[i] for i, w in enumerate(weights)]
    flat = torch.cat([s.flatten() for s in scores])
    zeros = round(sparsity * flat.numel())
    whole = keep_top(flat, flat.numel() - zeros)
    expected = [int((~part).sum()) for part in whole.split([w.numel() for w in weights])]
    quotas = [found[info.name] * info.numel for info in layers]
    assert apportion(quotas, zeros, [info.numel for info in layers]) == expected
    assert quotas == pytest.approx(expected, abs=1e-6)


def draw(*shapes, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g) * (i + 1) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("sparsity", [0.0, 0.001, 0.3, 0.5, 0.77, 0.999])
def test_equals_a_top_k_over_the_concatenation(sparsity):
    weights = draw((20, 30), (7, 11), (1, 5), (64, 64))
    check(weights, sparsity)
    check(weights, sparsity, [torch.rand(w.shape[1]) + 0.1 for w in weights])


@given(
    st.lists(st.lists(st.sampled_from([0.0, 0.5, -0.5, 1.0, 2.0]), min_size=1, max_size=8), min_size=1, max_size=5),
    st.floats(0, 0.99),
)
def test_ties_are_kept_in_the_order_of_the_layers(rows, sparsity):
    check([torch.tensor([row]) for row in rows], sparsity)


def test_neighbouring_floats_are_told_apart():
    one = torch.tensor([[1.0]])
    check([one, torch.nextafter(one, torch.tensor(2.0)), one, torch.nextafter(one, torch.tensor(0.0))], 0.5)


def test_a_louder_layer_keeps_more():
    layers, scan = model(draw((50, 50), (50, 50)))
    found = Global().allocate(layers, 0.5, scan).sparsities
    assert found["l0"] > 0.6 > 0.4 > found["l1"]


def test_bfloat16_weights():
    weights = [w.bfloat16().float() for w in draw((30, 30), (30, 30))]
    check(weights, 0.5)
    layers, scan = model([w.bfloat16() for w in weights])
    assert Global().allocate(layers, 0.5, scan) == Global().allocate(layers, 0.5, model(weights)[1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_are_named(bad):
    layers, scan = model([torch.ones(2, 2), torch.full((2, 2), bad)])
    with pytest.raises(NumericalError, match="l1"):
        Global().allocate(layers, 0.5, scan)
