"""Settings refuse what they declared that they cannot be, in one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from lowdim.core.errors import RecipeError
from lowdim.core.settings import Range, Settings, allowed, count, share, within


@dataclass(frozen=True)
class Foo(Settings):
    drop: float = share(0.3)
    every: int = count(100)
    lam: float | None = within(None, least=0, why="half the range")
    density: float = within(0.5, above=0, most=1)
    order: Literal["first", "last"] = "first"
    group: Literal[64, 128] | None = None
    label: str = "anything"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"drop": 1.5}, "drop must be between 0 and 1; got 1.5"),
        ({"drop": float("nan")}, "drop must be between 0 and 1; got nan"),
        ({"drop": "0.3"}, "drop must be between 0 and 1; got '0.3'"),
        ({"drop": None}, "drop must be between 0 and 1; got None"),
        ({"every": 0}, "every must be a whole number of at least 1; got 0"),
        ({"every": 2.5}, "every must be a whole number of at least 1; got 2.5"),
        ({"every": True}, "every must be a whole number of at least 1; got True"),
        ({"lam": -1}, "lam must be at least 0 (half the range); got -1"),
        ({"density": 0.0}, "density must be above 0 and at most 1; got 0.0"),
        ({"order": "frist"}, "unknown order 'frist'. Did you mean 'first'?"),
        ({"group": 65}, "unknown group 65."),
    ],
)
def test_one_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError) as error:
        Foo(**values)
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize("values", [{}, {"drop": 0}, {"drop": 1.0}, {"lam": 3}, {"group": None}, {"group": 64}])
def test_what_is_legal(values: dict[str, Any]) -> None:
    made = Foo(**values)
    assert {**made.to_dict(), **values} == made.to_dict()


def test_what_a_setting_may_be_in_words() -> None:
    assert allowed(Foo)["order"] == "'first' or 'last'"
    assert allowed(Foo)["drop"] == "between 0 and 1"
    assert "label" not in allowed(Foo)


def test_a_number_without_bounds_is_still_a_number() -> None:
    assert str(Range()) == "a number"
    assert "x" not in Range()
