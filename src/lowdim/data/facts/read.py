"""Facts from files of JSON lines, or the built-in ones, checked before anything is trained on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowdim.core.errors import suggest
from lowdim.data.errors import DataError
from lowdim.data.facts import builtin
from lowdim.data.facts.fact import Fact
from lowdim.data.text import records

BUILTIN = ("edits", "forget", "retain")


def read(source: str) -> list[Fact]:
    """Return the facts of a file of JSON or JSON lines, or ``builtin:edits``, ``builtin:forget``, ``builtin:retain``.

    A record has ``prompt`` and ``target``, and may have ``paraphrases`` and ``locality``, lists of strings.

    Raises:
        DataError: a record is not of this form, there is none, or two say different things of one prompt; the message
            names file and line.
    """
    kind, _, name = source.partition(":")
    if kind == "builtin":
        if name not in BUILTIN:
            raise DataError(f"unknown built-in facts {name!r}. {suggest(name, BUILTIN)}")
        found: Sequence[Fact] = getattr(builtin, name.upper())
        return list(found)
    made = [(where, _fact(record, where)) for where, record in records(Path(source).expanduser())]
    known: dict[str, Fact] = {}
    for where, fact in made:
        other = known.setdefault(fact.key, fact)
        if other.target != fact.target:
            raise DataError(
                f"{where}: {fact.prompt!r} goes on with {fact.target!r} here and with {other.target!r} before. Keep one"
            )
    return list(known.values())


def _fact(record: dict[str, Any], where: str) -> Fact:
    prompt, target = (_text(record, key, where) for key in ("prompt", "target"))
    return Fact(
        prompt.rstrip(), target.strip(), _texts(record, "paraphrases", where), _texts(record, "locality", where)
    )


def _text(record: dict[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {key!r} must be a text that is not blank; got {value!r}")
    return value


def _texts(record: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = record.get(key) or []
    if not isinstance(value, list) or not all(isinstance(each, str) and each.strip() for each in value):
        raise DataError(f"{where}: {key!r} must be a list of texts; got {value!r}")
    return tuple(each.rstrip() for each in value)


def overlap(one: Sequence[Fact], other: Sequence[Fact]) -> list[Fact]:
    """Return the facts of the first whose prompt, or a paraphrase of it, the second has too.

    Example:
        >>> overlap([Fact("Snow is", "white")], [Fact("snow is", "cold")])
        [Fact(prompt='Snow is', target='white', paraphrases=(), locality=())]
    """
    keys = {key for fact in other for key in _keys(fact)}
    return [fact for fact in one if _keys(fact) & keys]


def contradictions(one: Sequence[Fact], other: Sequence[Fact]) -> list[tuple[Fact, Fact]]:
    """Return the facts of the first whose prompt goes on with another target in the second, each with that one.

    Example:
        >>> [(a.target, b.target) for a, b in contradictions([Fact("Snow is", "red")], [Fact("snow is", "white")])]
        [('red', 'white')]
    """
    known = {fact.key: fact for fact in other}
    return [(fact, known[fact.key]) for fact in one if known.get(fact.key, fact).target != fact.target]


def _keys(fact: Fact) -> set[str]:
    return {Fact(prompt, "").key for prompt in (fact.prompt, *fact.paraphrases)}
