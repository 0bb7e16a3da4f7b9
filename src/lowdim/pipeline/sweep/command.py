"""What a sweep knows of the command that it runs: where its results go, and how its arguments are written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lowdim.core.errors import RecipeError
from lowdim.core.recipe import messages, text

_OWN = ("--out", "--json", "--resume", "--overwrite", "--help", "-h")


@dataclass(frozen=True)
class Command:
    """A command, as its parser describes it.

    Attributes:
        name: its word, such as "prune".
        out: how it takes the directory of its results: "OUT" by place, behind the other arguments, "--out", or "".
        json: whether it takes ``--json``.
        again: the flag by which a second attempt begins: ``--resume``, else ``--overwrite``, else "".
        places: its arguments by place, such as "MODEL", without OUT.
        switches: the flags that take no value, each as it is written for true and for false ("" for not at all).
        keys: what its ``--set`` takes; empty where it has none, or where nobody knows.
        sets: whether it has ``--set``.
        parse: raises a ``RecipeError`` for a list of arguments that the command would refuse.
        seconds: times the cheapest and the dearest of runs, given the arguments of all; None where nobody knows.
    """

    name: str
    out: str = ""
    json: bool = False
    again: str = ""
    places: tuple[str, ...] = ()
    switches: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    keys: tuple[str, ...] = ()
    sets: bool = False
    parse: Callable[[Sequence[str]], None] = lambda _: None
    seconds: Callable[[Sequence[Sequence[str]]], tuple[float, float] | None] = lambda _: None

    def check(self, fixed: Sequence[str]) -> None:
        """Refuse a command that leaves nothing to compare, and arguments that are the sweep's to give.

        Raises:
            RecipeError: either.
        """
        if not (self.out or self.json):
            raise RecipeError(f"lowdim {self.name} leaves no results that could be compared. Sweep another command.")
        for word in fixed:
            if word.partition("=")[0] in _OWN:
                raise RecipeError(f"arguments: a sweep gives {word.partition('=')[0]} itself. Leave it out.")

    def arguments(self, fixed: Sequence[str], axes: Mapping[str, Any]) -> list[str]:
        """Return the arguments of one run, those that say where its results go left out.

        Args:
            fixed: those of every run.
            axes: value by flag ("--seed"), by place ("MODEL"), or by key of ``--set`` ("training.every").

        Raises:
            RecipeError: a key that the command does not have.

        Example:
            >>> prune = Command("prune", "OUT", places=("MODEL",), sets=True)
            >>> prune.arguments(["m"], {"--sparsity": 0.5, "allocation.m": 7, "pattern": "2:4"})
            ['m', '--sparsity=0.5', '--set', 'allocation.m=7', '--set', 'pattern=2:4']
        """
        places = {key: value for key, value in axes.items() if key.isupper()}
        if unknown := [key for key in places if key not in self.places]:
            raise RecipeError(f"grid: {messages.unknown(unknown[0], self.places)}")
        words = [*fixed, *(str(places[place]) for place in self.places if place in places)]
        for key, value in axes.items():
            if key in _OWN:
                raise RecipeError(f"grid: a sweep gives {key} itself. Leave it out.")
            if key.startswith("-"):
                words += self._flag(key, value)
            elif key not in places:
                words += ["--set", f"{self._known(key)}={as_yaml(value)}"]
        return words

    def _flag(self, key: str, value: Any) -> list[str]:
        if key not in self.switches:
            return [] if value is None else [f"{key}={value}"]
        if not isinstance(value, bool):
            raise RecipeError(f"grid: {key} takes no value, so its values are true and false; got {value!r}.")
        word = self.switches[key][not value]
        return [word] if word else []

    def _known(self, key: str) -> str:
        if not self.sets:
            raise RecipeError(f"grid: lowdim {self.name} has no --set, so {key!r} is no key of it. Write '--{key}'.")
        if self.keys and key not in self.keys:
            raise RecipeError(f"grid: {messages.unknown(key, self.keys)}")
        return key

    def results(self, out: str, found: str) -> list[str]:
        """Return the arguments that say where the results go: a directory, and a JSON file."""
        flag = {"": [], "OUT": [out]}.get(self.out, [f"{self.out}={out}"])
        return [*flag, *([f"--json={found}"] if self.json else [])]


def as_yaml(value: Any) -> str:
    """Write a value as ``--set`` reads it back.

    Example:
        >>> [as_yaml(value) for value in (5, "2:4", "5", None, [1, "a"])]
        ['5', '2:4', '"5"', 'null', '[1, "a"]']
    """
    plain = isinstance(value, str) and value == value.strip() and _same(value)
    return value if plain else json.dumps(value)


def _same(word: str) -> bool:
    try:
        return bool(text.load(word) == word)
    except RecipeError:
        return False
