import math

import pytest

from lowdim.core.allocation import ERKPlus, counts_for, parse
from lowdim.core.allocation.by_shape import layers_of
from lowdim.core.allocation.counts import whole_counts
from lowdim.core.allocation.erk import erk
from lowdim.core.errors import RecipeError

SMALL = {"a": (10, 4), "b": (20, 10), "c": (5, 20)}
LENET = {"in": (300, 784), "mid": (100, 300), "head": (10, 100)}
CONV = {"c1": (8, 3, 3, 3), "c2": (16, 8, 3, 3), "fc": (10, 16)}
NAMED = ("uniform", "uniform-plus", "er", "erk", "erk-plus")


def total(shapes):
    return sum(map(math.prod, shapes.values()))


def shares(allocation, shapes, sparsity):
    return parse(allocation).densities(layers_of(shapes), sparsity, lambda: iter(()))


def kept(shapes, densities):
    return math.fsum(densities[name] * math.prod(shape) for name, shape in shapes.items())


@pytest.mark.parametrize(
    ("shapes", "density", "expected", "weights"),
    [
        (SMALL, 0.2, [0.344928, 0.147826, 0.246377], [13.797, 29.565, 24.638]),
        (LENET, 0.1, [0.079568, 0.230189, 1.0], [18714.34, 6905.66, 1000]),
        (LENET, 0.05, [0.038484, 0.111334, 0.918507], [9051.47, 3340.03, 918.51]),
        (CONV, 0.2, [0.329477, 0.109018, 0.680274], [71.17, 125.59, 108.84]),
    ],
)
def test_worked_examples(shapes, density, expected, weights):
    found = erk(shapes, 1 - density)
    assert [round(d, 6) for d in found.values()] == expected
    assert erk(list(shapes.values()), 1 - density) == list(found.values())
    each = [found[name] * math.prod(shape) for name, shape in shapes.items()]
    assert each == pytest.approx(weights, abs=0.0051)
    assert sum(each) == pytest.approx(density * total(shapes), rel=1e-14)
    exact = counts_for(shapes, "erk", 1 - density)
    assert sum(exact.values()) == round(density * total(shapes))
    assert all(abs(exact[name] - w) < 1 for name, w in zip(shapes, weights, strict=True))


@pytest.mark.parametrize(
    ("shapes", "density", "eps"),
    [(SMALL, 0.2, 0.985507), (LENET, 0.05, 8.350063), (CONV, 0.2, 4.186301)],
)
def test_the_factor_of_the_worked_examples(shapes, density, eps):
    found = erk(shapes, 1 - density)
    factors = [found[name] * math.prod(shape) / sum(shape) for name, shape in shapes.items()]
    assert factors == pytest.approx([eps] * 3, abs=5e-7)


def test_er_leaves_the_kernel_out():
    shapes = {"c1": (8, 4, 3, 3), "c2": (8, 8, 3, 3)}
    found = shares("er", shapes, 0.8)
    assert found["c1"] / found["c2"] == pytest.approx((12 / 32) / (16 / 64))
    with_kernel = erk(shapes, 0.8)
    assert with_kernel["c1"] / with_kernel["c2"] == pytest.approx((18 / 288) / (22 / 576))
    assert kept(shapes, found) == pytest.approx(0.2 * total(shapes))
    assert shares("er", LENET, 0.9) == erk(LENET, 0.9)


def test_layers_of_one_score_become_dense_together():
    shapes = {"a": (2, 2), "b": (2, 2), "c": (100, 100)}
    found = erk(shapes, 1 - 0.024)
    assert found["a"] == found["b"] == 1.0
    assert kept(shapes, found) == pytest.approx(0.024 * total(shapes))


def test_power():
    assert erk(CONV, 0.8, power=0.0) == shares("uniform", CONV, 0.8)
    steep = erk(CONV, 0.9, power=2.0)
    assert kept(CONV, steep) == pytest.approx(0.1 * total(CONV))
    assert steep["c1"] / steep["c2"] > erk(CONV, 0.9)["c1"] / erk(CONV, 0.9)["c2"]
    with pytest.raises(RecipeError, match="power must be finite; got nan"):
        erk(CONV, 0.9, power=math.nan)


def test_nothing_pruned_is_all_dense():
    for name in NAMED:
        assert counts_for(CONV, name, 0.0) == {n: math.prod(shape) for n, shape in CONV.items()}


def test_uniform_plus_meets_the_budget_the_authors_code_misses():
    shapes = {"c1": (8, 3, 3, 3), "mid": (64, 32, 3, 3), "fc": (10, 64)}
    found = shares("uniform-plus", shapes, 0.9)
    assert found["c1"] == 1.0
    assert found["fc"] == 0.2
    others = total(shapes) - 216 - 640
    assert found["mid"] == pytest.approx((0.1 * total(shapes) - 216 - 128) / others)
    assert kept(shapes, found) == pytest.approx(0.1 * total(shapes))
    above = shares("uniform-plus", shapes, 0.7)
    assert above["c1"] == 1.0
    assert above["mid"] == above["fc"]
    assert shares("uniform-plus", shapes, 0.8)["fc"] == shares("uniform-plus", shapes, 0.8)["mid"]


def test_uniform_plus_without_room():
    with pytest.raises(RecipeError, match=r"c1 at density 1, fc at density 0\.2, which leaves -210\.4 w"):
        shares("uniform-plus", {"c1": (8, 3, 3, 3), "mid": (8, 8, 3, 3), "fc": (92, 8)}, 0.9)
    with pytest.raises(RecipeError, match="uniform-plus keeps only"):
        shares("uniform-plus", {"only": (8, 8)}, 0.5)


def test_erk_plus():
    found = shares("erk-plus", CONV, 0.8)
    assert found["fc"] == 1.0
    others = {name: CONV[name] for name in ("c1", "c2")}
    rest = (0.2 * total(CONV) - 160) / (216 + 1152)
    assert [found["c1"], found["c2"]] == pytest.approx(list(erk(others, 1 - rest).values()))
    half = shares(ERKPlus(0.5), CONV, 0.8)
    assert half["fc"] == 0.5
    assert kept(CONV, half) == pytest.approx(0.2 * total(CONV))
    with pytest.raises(
        RecipeError, match=r"erk-plus keeps fc at density 1, which leaves -83\.6 weights for the other 1368"
    ):
        shares("erk-plus", CONV, 0.95)
    with pytest.raises(
        RecipeError, match=r"fc at density 0\.5, which leaves 1448 weights for the other 1368 at sparsity 0"
    ):
        shares(ERKPlus(0.5), CONV, 0.0)
    with pytest.raises(RecipeError, match=r"classifier_density must be above 0 and at most 1; got 0"):
        ERKPlus(0.0)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.95, 0.99, 0.999])
@pytest.mark.parametrize("name", ["uniform", "er", "erk"])
def test_totals_are_exact(name, sparsity):
    shapes = LENET | {"odd": (7, 13, 3, 3), "row": (1, 501), "empty": (0, 5), "one": (1, 1)}
    found = counts_for(shapes, name, sparsity)
    assert sum(found.values()) == round((1 - sparsity) * total(shapes))
    assert found["empty"] == 0
    for layer, shape in shapes.items():
        assert min(1, math.prod(shape)) <= found[layer] <= math.prod(shape)


def test_at_least_one_weight_per_layer():
    shapes = {"big": (100, 100), "s1": (5, 5), "s2": (5, 5), "s3": (5, 4)}
    assert counts_for(shapes, "uniform", 0.99) == {"big": 98, "s1": 1, "s2": 1, "s3": 1}
    assert whole_counts(
        {name: math.prod(shape) for name, shape in shapes.items()},
        {"big": 0.01, "s1": 0.0, "s2": 0.2, "s3": 0.0},
    ) == {
        "big": 100,
        "s1": 0,
        "s2": 5,
        "s3": 0,
    }
    with pytest.raises(RecipeError, match="leaves 1 weights, but 4 layers must keep between 4"):
        counts_for(shapes, "uniform", 0.9999)


def test_counts_beyond_the_live_layers():
    with pytest.raises(RecipeError, match="leaves 16 weights, but 1 layers must keep between 1 and 12"):
        whole_counts({"a": 12, "b": 20}, {"a": 1.0, "b": 0.0}, 0.5)


def test_explicit():
    shapes = {"a": (4, 4), "b": (8, 4)}
    assert counts_for(shapes, {"a": 0.5, "b": 0.75}, None) == {"a": 8, "b": 8}
    assert counts_for(shapes, {"b": 0.75, "a": 0.5}, 1 - 16 / 48) == {"a": 8, "b": 8}
    assert counts_for(shapes, {"a": 1.0, "b": 0.0}, None) == {"a": 0, "b": 32}
    for given, words in [
        ({"a": 0.5}, "must name every sparse layer; it lacks b"),
        ({"a": 0.5, "b": 0.5, "bb": 0.5}, "names 'bb', which is not a sparse layer. Did you mean 'b'"),
        ({"a": 1.5, "b": 0.5}, r"allocation\['a'\] must be between 0 and 1; got 1.5"),
    ]:
        with pytest.raises(RecipeError, match=words):
            counts_for(shapes, given, None)
    with pytest.raises(RecipeError, match=r"0\.6666667 in all, but sparsity is 0\.9.*or None"):
        counts_for(shapes, {"a": 0.5, "b": 0.75}, 0.9)


def test_an_allocation_may_be_given_as_an_object():
    assert parse(ERKPlus(0.5)) == ERKPlus(0.5)
    with pytest.raises(RecipeError, match="allocation must be a name, a mapping"):
        counts_for(SMALL, 3, 0.5)
    with pytest.raises(RecipeError, match="reads dense weights, and only their shapes are known"):
        counts_for(SMALL, "owl", 0.5)


@pytest.mark.parametrize(
    ("sparsity", "words"),
    [
        (1.0, "sparsity must be at least 0 and below 1"),
        (90, r"got 90; did you mean 0\.9\?"),
        (-0.1, "below 1"),
        (math.nan, "got nan"),
        ("0.9", "must be a number"),
        (True, "must be a number"),
        (None, "sparsity must be given"),
    ],
)
def test_bad_sparsity(sparsity, words):
    with pytest.raises(RecipeError, match=words):
        counts_for(SMALL, "erk", sparsity)


def test_bad_names_and_shapes():
    with pytest.raises(RecipeError, match=r"unknown allocation 'erkk'\. Did you mean 'erk'"):
        counts_for(SMALL, "erkk", 0.5)
    with pytest.raises(RecipeError, match="at least one layer; got none"):
        erk({}, 0.5)
    for shape in ((), (3, -1), (2.5, 2), 5, "34"):
        with pytest.raises(RecipeError, match="the shape of a must be whole numbers"):
            erk({"a": shape}, 0.5)


PINNED = [
    ("erk-plus", {"l0": (8, 36, 3, 3), "l1": (36, 14)}, 0.123456, {"l0": 2210, "l1": 504}),
    (
        "er",
        {"xl0": (40, 37), "xl1": (8, 24, 1, 1), "yl0": (40, 37), "yl1": (8, 24, 1, 1)},
        0.0,
        {"xl0": 1480, "xl1": 192, "yl0": 1480, "yl1": 192},
    ),
    (
        "uniform-plus",
        {"l0": (12, 8), "l1": (32, 14), "l2": (48, 4), "l3": (44, 2)},
        0.3,
        {"l0": 96, "l1": 296, "l2": 127, "l3": 58},
    ),
    (
        "gate-er",
        {"l0": (40, 29, 5, 5), "l1": (32, 27, 5, 5), "l2": (20, 23)},
        0.8,
        {"l0": 5302, "l1": 4758, "l2": 152},
    ),
    ("erk", {"l0": (4, 30), "l1": (48, 6), "l2": (24, 3)}, 0.5, {"l0": 71, "l1": 113, "l2": 56}),
    ("uniform", {"l0": (48, 11, 3, 3)}, 0.98, {"l0": 95}),
    ("erk-plus", {"l0": (28, 27), "l1": (24, 1), "l2": (16, 1)}, 0.0, {"l0": 756, "l1": 24, "l2": 16}),
    ("er", {"l0": (16, 20), "l1": (12, 7, 3, 3)}, 0.95, {"l0": 9, "l1": 45}),
    ("uniform-plus", {"l0": (8, 17), "l1": (36, 23, 1, 1)}, 0.8, {"l0": 136, "l1": 57}),
    ("gate-er", {"l0": (20, 36, 3, 3)}, 0.0, {"l0": 6480}),
    ("erk", {"l0": (40, 19, 3, 3)}, 0.123456, {"l0": 5996}),
    (
        "uniform",
        {"l0": (20, 38), "l1": (12, 28), "l2": (16, 23), "l3": (8, 5)},
        0.0,
        {"l0": 760, "l1": 336, "l2": 368, "l3": 40},
    ),
]


@pytest.mark.parametrize(("allocation", "shapes", "sparsity", "expected"), PINNED)
def test_counts_stay_what_they_were(allocation, shapes, sparsity, expected):
    assert counts_for(shapes, allocation, sparsity) == expected
