"""Settings of a method: fields that declare what they may be, and one sentence that refuses the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from types import UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from lowdim.core.errors import RecipeError, clash, suggest

Moot = Mapping[str, tuple[str, tuple[Any, ...]]]
"""Settings that change nothing beside some values of another: its name, and those values, by name."""


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may be; ``why`` says what the number is."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    whole: bool = False
    why: str = ""
    optional: bool = False

    def __contains__(self, value: object) -> bool:
        if value is None:
            return self.optional
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
            and value == value  # NaN is in no range, not even in an open one
        )

    def __str__(self) -> str:
        """Return the range in words.

        Example:
            >>> str(Range(least=0, most=1)), str(Range(least=1, whole=True)), str(Range(above=0, most=1))
            ('between 0 and 1', 'a whole number of at least 1', 'above 0 and at most 1')
        """
        if self.least is not None and self.most is not None:
            words = f"between {self.least:g} and {self.most:g}"
        else:
            named = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
            words = " and ".join(f"{word} {bound:g}" for word, bound in named.items() if bound is not None)
        kind = "a whole number" if self.whole else "" if words else "a number"
        return f"{kind}{' of ' if kind and words.startswith('at') else ' '}{words}".strip()


def within(default: Any, **bounds: Any) -> Any:
    """Declare a setting with a default and a `Range`; ``None`` is legal where it is the default."""
    return field(default=default, metadata={"range": Range(**bounds, optional=default is None)})


def share(default: float | None, why: str = "") -> Any:
    """Declare a share: a number between 0 and 1."""
    return within(default, least=0, most=1, why=why)


def count(default: int | None, least: int = 1, why: str = "") -> Any:
    """Declare a whole number of at least ``least``."""
    return within(default, least=least, whole=True, why=why)


@dataclass(frozen=True)
class Settings:
    """Base of every method: its paper's hyper-parameters, checked when it is made.

    A field made by `share`, `count` or `within` is held to its range; one whose type is a ``Literal``, to its words.

    Attributes:
        moot: those that change nothing beside some values of others.

    Raises:
        RecipeError: a value is out of its range, or no word of its list; names the setting, the rule and the value. Or
            a setting that is not at its default changes nothing.

    Example:
        >>> @dataclass(frozen=True)
        ... class Foo(Settings):
        ...     drop: float = share(0.3)
        >>> Foo(drop=1.5)
        Traceback (most recent call last):
        lowdim.core.errors.RecipeError: drop must be between 0 and 1; got 1.5
    """

    moot: ClassVar[Moot] = {}

    def __post_init__(self) -> None:
        check_all(self)
        check_moot(self, self.moot, {each.name: each.default for each in fields(self)})

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, as YAML can hold them."""
        return {each.name: plain(getattr(self, each.name)) for each in fields(self)}


def check_all(settings: Any) -> None:
    """Hold the fields of any dataclass to what they declare.

    Raises:
        RecipeError: a value is not allowed.
    """
    for name, legal in _allowed(type(settings)).items():  # type: ignore[arg-type]
        check(name, getattr(settings, name), legal)


def check_moot(settings: object, moot: Moot, usual: Mapping[str, Any]) -> None:
    """Refuse a setting that is not as usual where it changes nothing.

    Raises:
        RecipeError: names it, and the setting beside which it does not.
    """
    for name, (other, values) in moot.items():
        given, beside = getattr(settings, name), getattr(settings, other)
        if given != usual[name] and beside in values:
            remedy = f"Leave {name} out, or take another {other}"
            raise clash(f"{name}={given!r}", f"{other}={beside!r}", "it changes nothing there", remedy)


def check(name: str, value: object, legal: Range | tuple[Any, ...]) -> None:
    """Refuse a value that is not allowed.

    Raises:
        RecipeError: names the setting, the rule and the value; of words, the nearest.
    """
    if isinstance(legal, tuple):
        if value not in legal:
            words = [word for word in legal if isinstance(word, str)]
            raise RecipeError(f"unknown {name} {value!r}. {suggest(str(value), words)}")
    elif value not in legal:
        why = f" ({legal.why})" if legal.why else ""
        raise RecipeError(f"{name} must be {legal}{why}; got {value!r}")


def check_sparsity(sparsity: float) -> float:
    """Return a target share of zeros as a float.

    Raises:
        RecipeError: it is not a number, below 0, or not below 1.
    """
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)):
        raise RecipeError(f"sparsity must be a number such as 0.9 (the share of zeros); got {sparsity!r}")
    if not 0.0 <= sparsity < 1.0:
        hint = f"did you mean {sparsity / 100:g}?" if 1.0 < sparsity < 100.0 else "choose for example 0.9"
        raise RecipeError(f"sparsity must be at least 0 and below 1 (the share of zeros); got {sparsity:g}; {hint}")
    return float(sparsity)


@cache
def _allowed(cls: type[Settings]) -> dict[str, Range | tuple[Any, ...]]:
    """Return what each setting of a class may be; settings that may be anything are left out."""
    hints = get_type_hints(cls)
    found: dict[str, Range | tuple[Any, ...]] = {}
    for each in fields(cls):
        words = _words(hints[each.name])
        bounds = each.metadata.get("range")
        if words:
            found[each.name] = words
        elif bounds is not None:
            found[each.name] = bounds
    return found


def allowed(cls: type[Settings]) -> dict[str, str]:
    """Return what each setting of a class may be, in words, for tables and help.

    Example:
        >>> @dataclass(frozen=True)
        ... class Foo(Settings):
        ...     every: int = count(100)
        >>> allowed(Foo)
        {'every': 'a whole number of at least 1'}
    """
    return {
        name: " or ".join(map(repr, value)) if isinstance(value, tuple) else str(value)
        for name, value in _allowed(cls).items()  # type: ignore[arg-type]
    }


def _words(hint: Any) -> tuple[Any, ...]:
    """Return the words of a ``Literal``, or of one that may be None as well."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else ()
    inner = [part for part in parts if part is not type(None)]
    if len(parts) == 2 and len(inner) == 1 and get_origin(inner[0]) is Literal:
        return (*get_args(inner[0]), None)
    return ()


def plain(value: Any) -> Any:
    """Return a value as YAML can hold it."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (tuple, list, set, frozenset)) else value
