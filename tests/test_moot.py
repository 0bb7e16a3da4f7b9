"""A setting that changes nothing beside the value of another is refused, whatever method has it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_args, get_type_hints

import pytest

from lowdim.core import registry
from lowdim.core.errors import RecipeError
from lowdim.core.settings import Settings
from lowdim.merge.suptickets import Superposition
from lowdim.train.objectives.distill import Distillation
from lowdim.train.tickets.cocktail import SparseCocktail
from lowdim.train.tickets.suptickets import SupTickets

UNREGISTERED = [Distillation, SparseCocktail, Superposition, SupTickets]
CLASSES = {each for each in (entry.load() for entry in registry.methods()) if issubclass(each, Settings)}
CASES = [
    pytest.param(each, name, other, value, id=f"{each.__name__}-{name}-{value}")
    for each in sorted({*CLASSES, *UNREGISTERED}, key=lambda each: each.__name__)
    for name, (other, values) in each.moot.items()
    for value in values
]
NUMBERS = (0.5, 0.25, 3, 0.0625, True)


def values_of(method: type[Any], name: str) -> list[Any]:
    """Return what a setting might be."""
    return [*(word for word in get_args(get_type_hints(method)[name]) if isinstance(word, str | int)), *NUMBERS]


def accepted(method: type[Any], **settings: Any) -> bool:
    more = {"ce": 1.0} if method is Distillation else {}
    try:
        method(**settings, **more)
    except RecipeError:
        return False
    return True


@pytest.mark.parametrize(("method", "name", "other", "value"), CASES)
def test_what_changes_nothing_is_refused_and_taken_where_it_does(
    method: type[Any], name: str, other: str, value: Any
) -> None:
    usual = {each.name: each.default for each in fields(method)}
    assert accepted(method, **{other: value, name: usual[name]})
    given = next(
        each
        for each in values_of(method, name)
        for beside in values_of(method, other)
        if each != usual[name] and accepted(method, **{name: each, other: beside})
    )
    more = {"ce": 1.0} if method is Distillation else {}
    with pytest.raises(RecipeError, match=rf"^{name}=.* does not go with {other}={value!r}: it changes nothing there"):
        method(**{name: given, other: value}, **more)
