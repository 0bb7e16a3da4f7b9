import pytest

from lowdim.core.allocation import ER, ERPlus, LayerInfo
from lowdim.core.errors import RecipeError


def infos(*shapes):
    return [LayerInfo(f"l{i}", i, shape) for i, shape in enumerate(shapes)]


def densities(allocation, layers, density):
    return [1 - s for s in allocation.allocate(layers, 1 - density, lambda: iter([])).sparsities.values()]


LENET = infos((300, 784), (100, 300), (10, 100))


@pytest.mark.parametrize(
    ("layers", "density", "expected"),
    [
        (infos((10, 4), (20, 10), (5, 20)), 0.2, [0.344928, 0.147826, 0.246377]),
        (LENET, 0.1, [0.079568, 0.230189, 1.0]),
        (LENET, 0.05, [0.038484, 0.111334, 0.918507]),
    ],
)
def test_worked_examples(layers, density, expected):
    assert densities(ER(), layers, density) == pytest.approx(expected, abs=1e-6)


def test_equal_shapes_are_uniform():
    layers = infos((8, 8), (8, 8))
    assert ER().allocate(layers, 0.7, lambda: iter([])).sparsities == {
        "l0": pytest.approx(0.7),
        "l1": pytest.approx(0.7),
    }


def test_plus_keeps_the_last_layer_dense_at_the_same_budget():
    layers = infos((40, 40), (40, 120), (40, 40))
    found = densities(ERPlus(), layers, 0.5)
    assert found[-1] == 1
    assert sum(d * i.numel for d, i in zip(found, layers, strict=True)) == pytest.approx(0.5 * 8000)
    others = densities(ER(), layers[:2], (0.5 * 8000 - 1600) / 6400)
    assert found[:2] == pytest.approx(others)


def test_plus_without_room_for_the_last_layer():
    with pytest.raises(
        RecipeError, match=r"er-plus keeps l1 at density 1, which leaves -12\.8 weights.*at most 0\.5, or"
    ):
        ERPlus().allocate(infos((8, 8), (8, 8)), 0.6, lambda: iter([]))
    assert densities(ERPlus(), infos((8, 8), (8, 8)), 0.5) == [0, 1]
