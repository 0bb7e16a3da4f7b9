import pytest

from lowdim.core.allocation import Explicit, LayerInfo
from lowdim.core.errors import RecipeError

LAYERS = [LayerInfo(f"h.{b}.{n}", b, (4, c)) for b in range(2) for n, c in (("attn", 4), ("mlp", 8))]


def allocate(mapping, sparsity, layers=LAYERS):
    return Explicit(mapping).allocate(layers, sparsity, lambda: iter([])).sparsities


def test_named_layers_as_given_and_the_rest_makes_up():
    found = allocate({"attn": 0.2}, 0.5)
    assert found == {
        "h.0.attn": 0.2,
        "h.0.mlp": pytest.approx(0.65),
        "h.1.attn": 0.2,
        "h.1.mlp": pytest.approx(0.65),
    }


def test_the_first_match_counts():
    assert allocate({r"0\.mlp": 0.3, "mlp": 0.4}, 0.4)["h.0.mlp"] == 0.3
    assert allocate({r"0\.mlp": 0.3, "mlp": 0.4}, 0.4)["h.1.mlp"] == 0.4


def test_all_named_must_meet_the_budget():
    assert allocate({"attn": 0.2, "mlp": 0.65}, 0.5)["h.1.mlp"] == 0.65
    with pytest.raises(RecipeError, match=r"Set sparsity to 0\.5000000"):
        allocate({"attn": 0.2, "mlp": 0.65}, 0.7)


def test_nm_is_rounded_to_whole_patterns():
    found = Explicit({"attn": 0.25, "mlp": 0.625}).allocate_nm(LAYERS, 4, 8, lambda: iter([])).sparsities
    assert found == {"h.0.attn": 0.25, "h.0.mlp": 0.625, "h.1.attn": 0.25, "h.1.mlp": 0.625}


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (None, "needs map"),
        ({}, "needs map"),
        ({"attn": 1.5}, r"map\['attn'\].*got 1\.5"),
    ],
)
def test_impossible_maps(mapping, message):
    with pytest.raises(RecipeError, match=message):
        Explicit(mapping)


def test_schema_2_reads_globs():
    def found(mapping):
        return Explicit(mapping).in_schema(2).allocate(LAYERS, 0.5, lambda: iter([])).sparsities

    assert (
        found({"h.?.attn": 0.2})
        == found({"re:attn$": 0.2})
        == found({"*.attn.weight": 0.2})
        == allocate({"attn": 0.2}, 0.5)
    )
    with pytest.raises(RecipeError, match="map: 'attn' matches no layer"):
        found({"attn": 0.2})
    assert Explicit({"attn": 0.2}).in_schema(1) == Explicit({"attn": 0.2})


def test_what_is_no_expression():
    with pytest.raises(RecipeError, match=r"map '\(' is not a regular expression"):
        allocate({"(": 0.5}, 0.5)


def test_budgets_that_cannot_be_met():
    with pytest.raises(RecipeError, match=r"matches no layer; layers are named like 'h\.0\.attn'"):
        allocate({"mpl": 0.5}, 0.5)
    with pytest.raises(RecipeError, match=r"sparsity 1\.3500, outside 0 to 1"):
        allocate({"mlp": 0.2}, 0.58333333333)
