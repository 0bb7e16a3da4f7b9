"""Which weights are meant: globs, and regular expressions after ``re:``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import translate

from lowdim.core.errors import RecipeError, suggest

Texts = Sequence[str] | None


def expression(text: str, schema: int = 2, key: str = "expression") -> re.Pattern[str]:
    """Return what to search for: a whole name that fits the glob; after ``re:`` and in schema 1 the text itself.

    Raises:
        RecipeError: what should be a regular expression is none.
    """
    glob = schema > 1 and not text.startswith("re:")
    try:
        return re.compile(rf"\A{translate(text)}" if glob else text if schema == 1 else text[3:])
    except re.error as error:
        remedy = "Escape what is meant literally" + ", or write schema: 2 for globs" * (schema == 1)
        raise RecipeError(f"{key} {text!r} is not a regular expression: {error}. {remedy}.") from error


def matches(text: str, name: str, schema: int = 2) -> bool:
    """Tell whether an expression names a weight, by its own name or, but for schema 1, by that of its module.

    Example:
        >>> [matches(text, "h.0.fc.weight") for text in ("h.*.fc", "*.weight", "fc", "re:fc$")]
        [True, True, False, True]
    """
    found = expression(text, schema).search
    return bool(found(name) or (schema > 1 and found(name.rpartition(".")[0])))


def choose(
    names: Iterable[str], include: Texts, exclude: Texts, key: str = "", schema: int = 2, can: str = "be sparse"
) -> list[str]:
    """Return the weights' names that ``include`` (all if None) and ``exclude`` leave; ``can`` says what they may be.

    Raises:
        RecipeError: an argument is not a list, or an expression is wrong or matches nothing.
    """
    names = list(names)
    for argument, texts in ((f"{key}include", include), (f"{key}exclude", exclude)):
        if isinstance(texts, str):
            raise RecipeError(f"{argument} must be a list; got the string {texts!r}. Write [{texts!r}]")
        for text in texts or ():
            if not any(matches(text, name, schema) for name in names):
                near = _near(text, names, schema)
                raise RecipeError(f"{argument} {text!r} matches no weight that can {can}. {near}")
    wanted = [n for n in names if include is None or any(matches(text, n, schema) for text in include)]
    return [n for n in wanted if not any(matches(text, n, schema) for text in exclude or ())]


def _near(text: str, names: Sequence[str], schema: int) -> str:
    if schema == 1 and any(matches(text, name) for name in names):
        return "It would match with schema: 2 in the recipe, where lists are globs."
    form = "{}" if schema == 1 else "re:{}" if text.startswith("re:") else "*{}*"
    words = {form.format(part) for name in names for part in name.split(".") if not part.isdigit()}
    near = suggest(text, words.union(names))
    return near if near.startswith("Did") else suggest(text, words)
