from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lowdim.core.errors import RecipeError
from lowdim.core.recipe import text


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("2:4", "2:4"),  # YAML 1.1 reads 124
        ("1e-6", 1e-6),  # YAML 1.1 reads text
        ("1.5e3", 1500.0),
        ("010", 10),  # YAML 1.1 reads eight
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("2024-01-01", "2024-01-01"),
        ("no", "no"),
        ("on", "on"),
        ("none", "none"),
        ("null", None),
        ("", None),
        ("~", None),
        ("true", True),
        ("-3", -3),
        (".5", 0.5),
        ("1x16", "1x16"),
        ("[a, 2:4]", ["a", "2:4"]),
        ("{m: 5}", {"m": 5}),
    ],
)
def test_scalars_are_read_as_a_recipe_means_them(written: str, value: object) -> None:
    read = text.load(written)
    assert read == value
    assert type(read) is type(value)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(PLAIN)
def test_dump_then_load_is_the_identity(value: object) -> None:
    assert text.load(text.dump(value)) == value


@pytest.mark.parametrize(
    "value", ["\x85", "a\u2028b", "\u2029", "é", "\ufeff", "a\nb", " a", "a: b", "#", "- x", "\t", "'"]
)
def test_odd_characters_survive(value: str) -> None:
    assert text.load(text.dump([value, {value: value}])) == [value, {value: value}]


@given(st.text() | st.from_regex(r"[-+]?[0-9.e:_x]{1,8}", fullmatch=True))
def test_other_yaml_readers_see_the_same_text(value: str) -> None:
    assert yaml.safe_load(text.dump({"key": value})) == {"key": value}


def test_a_key_written_twice_is_refused_with_its_line() -> None:
    with pytest.raises(RecipeError, match=r"'seed' is written twice \(line 3\)"):
        text.load("seed: 1\nsparsity: 0.5\nseed: 2\n")


def test_python_objects_are_refused_and_not_built(tmp_path) -> None:
    target = tmp_path / "made"
    with pytest.raises(RecipeError, match="not valid YAML"):
        text.load(f"!!python/object/apply:pathlib.Path.touch [{target}]")
    assert not target.exists()


@pytest.mark.parametrize("broken", ["a: [1, 2", "a: b: c", "\tx: 1", "'", "a: !!binary x", "\x00"])
def test_broken_text_is_a_recipe_error(broken: str) -> None:
    with pytest.raises(RecipeError, match="not valid YAML"):
        text.load(broken)


def test_aliases_are_refused_so_that_no_short_text_becomes_huge() -> None:
    with pytest.raises(RecipeError, match=r"alias \*a \(line 2\): write the value out"):
        text.load("a: &a [x, x]\nb: [*a, *a]\n")
