"""What holds for every registered allocation."""

import dataclasses
import subprocess
import sys

import pytest
import torch

from lowdim.core import registry
from lowdim.core.allocation import LayerInfo, ScannedLayer
from lowdim.core.errors import RecipeError

SETTINGS = {"explicit": {"map": {r"^0\.": 0.6}}, "gate-er": {"gates": 1}}


def allocations():
    for name in registry.names("allocation"):
        yield pytest.param(registry.find("allocation", name).load()(**SETTINGS.get(name, {})), id=name)


ALLOCATIONS = list(allocations())

SHAPES = {
    "plain": [[(16, 16), (40, 16), (16, 40)]] * 4,
    "unequal": [[(16, 16)], [(16, 48), (8, 16)], [(64, 16)], [(5, 7), (7, 5)]],
    "rows": [[(1, 32), (1, 8)], [(1, 32)], [(1, 16)]],
    "columns": [[(32, 1), (8, 1)], [(32, 1)], [(16, 1)]],
}


def model(shapes, fill=None, dtype=torch.float32):
    """Build blocks of random weights with a heavier tail in each block than in the one before."""
    g = torch.Generator().manual_seed(0)
    layers, blocks = [], []
    for b, block in enumerate(shapes):
        infos = [LayerInfo(f"{b}.{n}", b, shape) for n, shape in enumerate(block)]
        weights = [
            torch.randn(i.rows, i.cols, generator=g) * (1 + torch.rand(i.cols, generator=g) * 3) ** b for i in infos
        ]
        if fill is not None:
            weights = [torch.full_like(w, fill) for w in weights]
        layers += infos
        scales = [torch.rand(i.cols, generator=g) + 0.5 if fill is None else torch.ones(i.cols) for i in infos]
        blocks.append([ScannedLayer(i, w.to(dtype), s) for i, w, s in zip(infos, weights, scales, strict=True)])
    return layers, lambda: iter(blocks)


def mean(layers, sparsities):
    return sum(sparsities[i.name] * i.numel for i in layers) / sum(i.numel for i in layers)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("sparsity", [0.5, 0.65, 0.75])
def test_the_budget_is_met_within_the_limits(allocation, shapes, sparsity):
    layers, scan = model(SHAPES[shapes])
    if type(allocation).__name__ == "UniformPlus" and shapes in ("rows", "columns") and sparsity > 0.5:
        # its dense first layer is nearly half of these models
        with pytest.raises(RecipeError, match="uniform-plus keeps"):
            allocation.allocate(layers, sparsity, scan)
        return
    found = allocation.allocate(layers, sparsity, scan)
    assert list(found.sparsities) == [info.name for info in layers]
    assert all(0.0 <= s <= 1.0 for s in found.sparsities.values())
    # global counts whole weights
    tolerance = 1e-6 if type(allocation).__name__ != "Global" else 0.51 / sum(i.numel for i in layers)
    assert mean(layers, found.sparsities) == pytest.approx(sparsity, abs=tolerance)
    assert set(found.values) <= set(found.sparsities)
    assert all(value == value for value in found.values.values())


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_equal_weights_of_equal_shape_never_give_nan(allocation, fill):
    layers, scan = model([[(16, 16)]] * 4, fill)
    found = allocation.allocate(layers, 0.6, scan).sparsities
    assert mean(layers, found) == pytest.approx(0.6, abs=1e-3)
    if type(allocation).__name__ not in ("Global", "ERPlus", "ERKPlus", "UniformPlus"):
        assert list(found.values()) == pytest.approx([0.6] * 4, abs=1e-12)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_same_model_same_answer_in_any_dtype(allocation):
    layers, scan = model(SHAPES["plain"], dtype=torch.bfloat16)
    halves = [[ScannedLayer(s.info, s.weight.float(), s.scale) for s in block] for block in scan()]
    first = allocation.allocate(layers, 0.6, scan)
    assert first == allocation.allocate(layers, 0.6, scan)
    assert first.sparsities == pytest.approx(
        allocation.allocate(layers, 0.6, lambda: iter(halves)).sparsities, abs=1e-9
    )


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize(("keep", "group"), [(2, 4), (4, 8), (3, 8)])
def test_nm_gives_whole_patterns_with_the_same_mean(allocation, keep, group):
    layers, scan = model(SHAPES["plain"])
    found = allocation.allocate_nm(layers, keep, group, scan).sparsities
    counts = [(1 - s) * group for s in found.values()]
    assert counts == pytest.approx([round(c) for c in counts], abs=1e-9)
    assert all(1 <= round(c) <= group for c in counts)
    step = 1 / 4 / group  # one more kept in one of the four blocks
    assert mean(layers, found) == pytest.approx(1 - keep / group, abs=step / 2 + 1e-9)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_only_what_is_declared_is_read(allocation):
    def scan():
        raise AssertionError("reads_weights is False")

    layers, real = model(SHAPES["plain"])
    if not allocation.reads_weights:
        allocation.allocate(layers, 0.6, scan)
        assert allocation.scale_from is None
    elif allocation.scale_from is None:
        bare = [[ScannedLayer(s.info, s.weight, None) for s in block] for block in real()]
        assert allocation.allocate(layers, 0.6, lambda: iter(bare)) == allocation.allocate(layers, 0.6, real)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("turn", [1, 2, 3])
def test_where_the_ends_are_known_the_order_of_the_layers_says_nothing(allocation, turn):
    blocks = [[(8, 16)], [(16, 48), (8, 16)], [(64, 16)], [(5, 40)]]
    layers, scan = model(blocks)
    ends = {"0.0": "first", "1.1": "classifier"} if allocation.takes_classifier else {"0.0": "first"}
    layers = [dataclasses.replace(info, end=ends.get(info.name, "")) for info in layers]
    found = allocation.allocate(layers, 0.7, scan).sparsities
    read = list(scan())
    turned = [info for block in (*range(turn, 4), *range(turn)) for info in layers if info.block == block]
    other = allocation.allocate(turned, 0.7, lambda: iter(read[turn:] + read[:turn])).sparsities
    assert {name: other[name] for name in found} == pytest.approx(found, abs=1e-9)


@pytest.mark.parametrize("allocation", [a for a in ALLOCATIONS if a.values[0].takes_classifier])
def test_one_that_takes_the_classifier_refuses_layers_without_it(allocation):
    layers, scan = model(SHAPES["unequal"])
    with pytest.raises(RecipeError, match="the classifier is not among the sparse layers"):
        allocation.allocate([dataclasses.replace(info, end="") for info in layers], 0.5, scan)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_settings_are_plain_data(allocation):
    assert type(allocation)(**dataclasses.asdict(allocation)) == allocation


def test_choosing_an_allocation_does_not_import_torch():
    code = (
        "import sys; from lowdim.core import registry; [registry.find('allocation', n).load() for n in "
        "registry.names('allocation')]; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
