"""The pruned model beside what one would otherwise pick: the dense model, rounded, in the same runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lowdim.report.draw import words
from lowdim.report.pruning.summary import NOISE, measured_form, section

Json = Mapping[str, Any]
_LEAST = 5
"""Windows on which perplexities are compared at least."""


@dataclass(frozen=True)
class Rival:
    """A form of the model.

    Attributes:
        cells: of a table: what it is, its perplexity, the bytes that it reads per token, tokens per second.
        sentence: how a dense form compares with the pruned one.
    """

    cells: tuple[str, str, str, str]
    sentence: str = ""


def rivals(run: Json) -> list[Rival]:
    """Return the pruned form that a run's speed is of, and every dense one of this runtime with its sentence.

    They are set side by side by perplexity, bytes read per token and tokens per second; only a form of which all three
    were measured counts, and nothing is compared on less than `_LEAST` windows.

    Args:
        run: the contents of ``OUT.run.json``.

    Example:
        >>> own = {"engine": "lowdim", "dtype": "int4", "sparsity": 0.5, "perplexity": 30.1, "tokens_per_s": 200.0}
        >>> dense = own | {"sparsity": 0.0, "perplexity": 27.5, "bytes_per_token": 86e6}
        >>> models = [own | {"bytes_per_token": 75e6}, dense]
        >>> runtime = {"models": models, "protocol": {"windows": 10}}
        >>> _, rival = rivals({"speed": {"sparse_tokens_per_s": 200.0, "runtime": runtime}})
        >>> rival.sentence
        'Dense int4 is better in perplexity (27.5 against 30.1), as fast, and reads more (86.0 MB against 75.0 MB).'
    """
    own = measured_form(run)
    if not _whole(own) or _windows(run) < _LEAST:
        return []
    forms = section(run, "speed", "runtime").get("models") or []
    return [_cells(own)] + [_cells(form, _sentence(form, own)) for form in forms if _whole(form) and _dense(form)]


def missing(run: Json) -> str:
    """Return why a pruned form is not set beside the dense ones though that was asked for; empty if there is no reason.

    Args:
        run: the contents of ``OUT.run.json``.

    Example:
        >>> missing({"speed": {"runtime": {"protocol": {"windows": 2, "asked": 6}}}})[:65]
        'Not set beside the dense forms in this runtime: perplexity was me'
    """
    asked = section(run, "speed", "runtime", "protocol").get("asked")
    if not asked or _windows(run) >= _LEAST:
        return ""
    return (
        f"Not set beside the dense forms in this runtime: perplexity was measured on {_windows(run)} of {asked} "
        f"windows, and nothing is compared on fewer than {_LEAST}. lowdim bench OUT --text FILE measures more."
    )


def heads(run: Json) -> tuple[str, str, str]:
    """Return the heads of the columns of numbers; the perplexity's says on how many windows it was measured.

    Example:
        >>> heads({"speed": {"runtime": {"protocol": {"windows": 10}}}})
        ('Perplexity, 10 windows', 'Read per token', 'Tokens/s')
    """
    return f"Perplexity, {words.plural(_windows(run), 'window')}", "Read per token", "Tokens/s"


def _windows(run: Json) -> int:
    return int(section(run, "speed", "runtime", "protocol").get("windows") or 0)


def _dense(form: Json) -> bool:
    return not form.get("sparsity")


def _whole(form: Json) -> bool:
    measured = ("perplexity", "bytes_per_token", "tokens_per_s")
    return form.get("engine") == "lowdim" and all(form.get(key) for key in measured)


def _cells(form: Json, sentence: str = "") -> Rival:
    zeros = "dense" if _dense(form) else f"{words.percent(form['sparsity'], 0)} zeros"
    name = words.clean(f"{form.get('dtype', '')}, {zeros}")
    size, speed = words.size(form["bytes_per_token"]), words.number(form["tokens_per_s"])
    return Rival((name, words.number(form["perplexity"]), size, speed), sentence)


def _sentence(form: Json, own: Json) -> str:
    parts = [_quality(form, own), _speed(form, own), _size(form, own)]
    return f"Dense {words.clean(form.get('dtype', ''))} is {parts[0]}, {parts[1]}, and {parts[2]}."


def _against(form: Json, own: Json, key: str, write: Any) -> str:
    return f"({write(form[key])} against {write(own[key])})"


def _quality(form: Json, own: Json) -> str:
    word = "better" if form["perplexity"] < own["perplexity"] else "worse"
    return f"{word} in perplexity {_against(form, own, 'perplexity', words.number)}"


def _speed(form: Json, own: Json) -> str:
    ratio = form["tokens_per_s"] / own["tokens_per_s"]
    if abs(ratio - 1) < NOISE:
        return "as fast"
    return f"{'faster' if ratio > 1 else 'slower'} {_against(form, own, 'tokens_per_s', words.number)}"


def _size(form: Json, own: Json) -> str:
    word = "more" if form["bytes_per_token"] > own["bytes_per_token"] else "less"
    return f"reads {word} {_against(form, own, 'bytes_per_token', words.size)}"
