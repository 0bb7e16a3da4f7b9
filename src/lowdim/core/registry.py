"""One table of every method: its kind, its class, its paper.

A family's ``__init__`` registers each method with one line; the class is imported on first use, so that listing the
methods, or refusing a bad recipe, costs no import of torch.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from lowdim.core.errors import RecipeError, suggest


@dataclass(frozen=True)
class Kind:
    """A kind of method: its title in the plural, and the packages whose ``__init__`` registers its members."""

    title: str
    modules: tuple[str, ...]


KINDS: dict[str, Kind] = {}


def kind(name: str, title: str, *modules: str) -> None:
    """Add a kind; the package does so once, for all of them."""
    KINDS[name] = Kind(title, modules)


@dataclass(frozen=True)
class Entry:
    """A registered method: ``target`` is ``module:Class``, a frozen dataclass of the paper's hyper-parameters.

    ``title`` is that of the paper, if there is one, and ``page`` where it can be read if arXiv does not have it.
    """

    kind: str
    name: str
    target: str
    title: str
    arxiv: str = ""
    year: int = 0
    aliases: tuple[str, ...] = ()
    page: str = ""

    def load(self) -> type[Any]:
        """Import and return the method's class."""
        module, _, attribute = self.target.partition(":")
        return getattr(importlib.import_module(module), attribute)  # type: ignore[no-any-return]

    def settings(self) -> dict[str, Any]:
        """Return the class's fields and their defaults."""
        cls = self.load()
        assert is_dataclass(cls)
        return {field.name: field.default for field in fields(cls)}


_methods: dict[tuple[str, str], Entry] = {}


def register(
    kind: str,
    name: str,
    target: str,
    *,
    title: str,
    arxiv: str = "",
    year: int = 0,
    aliases: tuple[str, ...] = (),
    page: str = "",
) -> None:
    """Add a method to the table.

    Raises:
        RuntimeError: the name is taken by another target.
    """
    method = Entry(kind, name, target, title, arxiv, year, aliases, page)
    for key in (name, *aliases):
        if _methods.get((kind, key), method) != method:
            raise RuntimeError(f"{kind} {key!r} is registered twice: {_methods[kind, key].target} and {target}")
        _methods[kind, key] = method


def _family(kind: str) -> None:
    for module in KINDS[kind].modules:
        importlib.import_module(module)


def names(kind: str) -> list[str]:
    """Return the names of a kind, in the order of registration, aliases left out."""
    _family(kind)
    return [key for (k, key), method in _methods.items() if k == kind and key == method.name]


def find(kind: str, name: str) -> Entry:
    """Return a method by name.

    Raises:
        RecipeError: no method of this kind has the name; the nearest one is suggested.
    """
    _family(kind)
    method = _methods.get((kind, name))
    if method is None:
        raise RecipeError(f"unknown {kind} {name!r}. {suggest(name, names(kind))}")
    return method


def methods() -> list[Entry]:
    """Return every registered method, family by family."""
    return [find(kind, name) for kind in KINDS for name in names(kind)]
