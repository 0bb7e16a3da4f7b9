"""How documents become calibration samples: windows of prose, or questions and answers in three arrangements.

Paper: Is C4 Dataset Optimal for Pruning? An Investigation of Calibration Data for LLM Pruning,
arXiv 2410.07461.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from lowdim.core import registry
from lowdim.core.errors import suggest
from lowdim.core.lazy import torch
from lowdim.core.registry import register
from lowdim.core.settings import Settings, count
from lowdim.data import tokens
from lowdim.data.errors import DataError
from lowdim.data.text import Document

SEPARATOR = "\n\n"

_C, _HERE = "calibration", "lowdim.data.formats"
_TITLE = "Is C4 Dataset Optimal for Pruning? An Investigation of Calibration Data for LLM Pruning"
register(_C, "text", f"{_HERE}:Text", title="Random windows of prose")
register(_C, "zero", f"{_HERE}:Zero", title=_TITLE, arxiv="2410.07461", year=2024)
register(_C, "single", f"{_HERE}:Single", title=_TITLE, arxiv="2410.07461", year=2024)
register(_C, "concat", f"{_HERE}:Concat", title=_TITLE, arxiv="2410.07461", year=2024)


@dataclass(frozen=True)
class Layout:
    """What one calibration set is to look like; for the fields see `lowdim.data.calibration.calibration`."""

    samples: int = 128
    context: int = 2048
    format: str = "text"
    padding: str = "left"
    rationale: bool = False
    in_context: int | None = None
    bos: tokens.Bos = "tokenizer"

    def __post_init__(self) -> None:
        known = registry.names(_C)
        if self.format not in known:
            raise DataError(f"unknown calibration format {self.format!r}. {suggest(self.format, known)}")
        if self.padding not in ("left", "right"):
            raise DataError(f"padding is 'left' or 'right'; got {self.padding!r}")
        for name in ("samples", "context", "in_context"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DataError(f"{name} must be at least 1; got {value}")
        for name, given in (("rationale", self.rationale), ("in_context", self.in_context is not None)):
            allowed = [each for each in known if name in registry.find(_C, each).settings()]
            if given and self.format not in allowed:
                raise DataError(f"{name} works with format {' or '.join(allowed)}; got format {self.format!r}")

    @property
    def arrangement(self) -> Format:
        """The format with its settings."""
        cls: type[Format] = registry.find(_C, self.format).load()
        return cls(**{field.name: getattr(self, field.name) for field in fields(cls)})


def arrange(
    documents: Sequence[Document],
    tokenizer: Any,
    layout: Layout,
    rng: torch.Generator,
    passed: set[int] | None = None,
) -> list[list[int]]:
    """Return ``layout.samples`` lists of at most ``layout.context`` token ids.

    Args:
        documents: what samples are drawn from. Blank ones are passed over.
        tokenizer: the model's.
        layout: see the formats for what the samples look like.
        rng: draws documents and places.
        passed: receives the places of the blank documents that were drawn.

    Raises:
        DataError: too little text, or documents that do not suit the format.
    """
    desk = Desk(tokenizer, layout, rng, documents, set() if passed is None else passed)
    if desk.size < 1:
        raise DataError(f"context={layout.context} leaves no room beside the start-of-text token")
    return layout.arrangement.rows(desk)


class _Joined:
    """Token lists put one after the other with a separator in between."""

    def __init__(self, separator: list[int]) -> None:
        self.separator, self.ids, self.own = separator, list[int](), 0

    def add(self, piece: list[int]) -> None:
        if piece:
            self.ids += [*(self.separator if self.ids else ()), *piece]
            self.own += len(piece)

    def fits(self, piece: list[int], size: int) -> bool:
        return len(self.ids) + (len(self.separator) if self.ids else 0) + len(piece) <= size

    def cut(self, size: int) -> list[list[int]]:
        return [self.ids[at : at + size] for at in range(0, len(self.ids) - size + 1, size)]


class Desk:
    """What a format arranges: documents in the order drawn, and how long a sample may be.

    Attributes:
        samples: how many are wanted.
        start: the special tokens that every sample opens with.
        size: tokens of a sample beside them.
    """

    def __init__(
        self, tokenizer: Any, layout: Layout, rng: torch.Generator, documents: Sequence[Document], passed: set[int]
    ) -> None:
        self.tokenizer, self.rng, self.bos = tokenizer, rng, layout.bos
        self.documents, self.passed = documents, passed
        self.samples, self.context = layout.samples, layout.context
        self.start = tokens.prefix(tokenizer, layout.bos, opening=layout.arrangement.asks)
        self.size = layout.context - len(self.start)

    def joined(self) -> _Joined:
        """Return an empty row."""
        return _Joined(tokens.encode(self.tokenizer, SEPARATOR, "none"))

    def drawn(self) -> Iterator[Document]:
        """Yield the documents in random order, blank ones left out.

        Raises:
            DataError: all of them are blank.
        """
        for i in torch.randperm(len(self.documents), generator=self.rng).tolist():
            document = self.documents[i]
            if document.blank:
                self.passed.add(i)
            else:
                yield document
        if len(self.passed) == len(self.documents):
            raise DataError(f"the source holds no text: all of its {len(self.passed)} rows are blank")

    def check_questions(self, rationale: bool | None) -> None:
        """Refuse documents that are not questions with answers, or lack a rationale that is asked for."""
        for number, document in enumerate(self.documents, start=1):
            if not (document.asks or document.blank):
                kind = "a chat" if document.chat else "plain text"
                raise DataError(
                    f"this format needs questions and answers, but document {number} is {kind}; "
                    "use format 'text', or JSON lines with 'question' and 'answer'"
                )
            if rationale and document.asks and not document.rationale:
                raise DataError(f"rationale is asked for, but document {number} has no field 'rationale'")

    def questions(self, rationale: bool | None) -> Iterator[list[int]]:
        """Yield the questions that fit a sample, with their answers; without for None."""
        for document in self.drawn():
            written = document.prompt if rationale is None else document.answered(rationale)
            ids = tokens.encode(self.tokenizer, written, "none")
            if len(ids) <= self.size:
                yield ids

    def place(self, choices: int) -> int:
        """Draw a place."""
        return int(torch.randint(choices, (1,), generator=self.rng))


@dataclass(frozen=True)
class Format(Settings, ABC):
    """How documents become samples.

    Attributes:
        asks: whether documents must be questions with answers.
    """

    asks: ClassVar[bool] = True

    @abstractmethod
    def rows(self, desk: Desk) -> list[list[int]]:
        """Return as many samples as the desk wants.

        Raises:
            DataError: too little text, or documents that do not suit the format.
        """


@dataclass(frozen=True)
class Text(Format):
    """Random windows of the documents.

    Each document gives one window at a random place, those shorter than the context are joined; while samples are
    missing, what is left of the documents gives further windows. No token is used twice, and ``samples * context``
    tokens are always enough. A chat is written by the tokenizer's own template.
    """

    asks: ClassVar[bool] = False

    def rows(self, desk: Desk) -> list[list[int]]:
        """Return windows."""
        windows, short = list[list[int]](), desk.joined()
        drawn = desk.drawn()
        pieces: Iterable[list[int]] = (tokens.encode_document(desk.tokenizer, each, desk.bos) for each in drawn)
        while True:
            rest: list[list[int]] = []
            for piece in pieces:
                if len(piece) < desk.size:
                    short.add(piece)
                else:
                    at = desk.place(len(piece) - desk.size + 1)
                    windows.append(piece[at : at + desk.size])
                    rest += [piece[:at], piece[at + desk.size :]]
                if len(windows) + len(short.ids) // desk.size >= desk.samples:
                    return [desk.start + row for row in (windows + short.cut(desk.size))[: desk.samples]]
            if not rest:
                raise _too_little(desk, len(windows) * desk.size + short.own)
            pieces = rest


@dataclass(frozen=True)
class Zero(Format):
    """A question without its answer, up to where the answer would start; those longer than the context are left out.

    Paper: "Is C4 Dataset Optimal for Pruning? An Investigation of Calibration Data for LLM Pruning",
    arXiv 2410.07461.
    """

    def rows(self, desk: Desk) -> list[list[int]]:
        """Return one question each."""
        return _one_each(desk, None)


@dataclass(frozen=True)
class Single(Format):
    """A question with its answer; questions longer than the context are left out.

    Args:
        rationale: put the worked reasoning before the answer.

    Paper: "Is C4 Dataset Optimal for Pruning? An Investigation of Calibration Data for LLM Pruning",
    arXiv 2410.07461.
    """

    rationale: bool = False

    def rows(self, desk: Desk) -> list[list[int]]:
        """Return one question each."""
        return _one_each(desk, self.rationale)


@dataclass(frozen=True)
class Concat(Format):
    """Questions with answers until the window is full, or ``in_context`` whole ones.

    All questions are used before one comes back. Questions longer than the context are left out.

    Args:
        rationale: put the worked reasoning before the answer.
        in_context: that many whole questions a sample, the rest padding; None fills the window.

    Paper: "Is C4 Dataset Optimal for Pruning? An Investigation of Calibration Data for LLM Pruning",
    arXiv 2410.07461.
    """

    rationale: bool = False
    in_context: int | None = count(None)

    def rows(self, desk: Desk) -> list[list[int]]:
        """Return rows of questions with a blank line between them."""
        desk.check_questions(self.rationale)
        questions = self._endless(desk)
        question = next(questions)
        most = self.in_context or sys.maxsize
        rows: list[list[int]] = []
        while len(rows) < desk.samples:
            row, whole = desk.joined(), 0
            while whole < most and row.fits(question, desk.size):
                row.add(question)
                question, whole = next(questions), whole + 1
            if self.in_context is None:
                row.add(question)  # its start fills the window
                question = next(questions)
            rows.append(desk.start + row.ids[: desk.size])
        return rows

    def _endless(self, desk: Desk) -> Iterator[list[int]]:
        found = True
        while found:
            found = False
            for question in desk.questions(self.rationale):
                found = True
                yield question
        raise DataError(f"no question fits in {desk.context} tokens; use a longer context")


def _one_each(desk: Desk, rationale: bool | None) -> list[list[int]]:
    desk.check_questions(rationale)
    rows: list[list[int]] = []
    for question in desk.questions(rationale):
        rows.append(desk.start + question)
        if len(rows) == desk.samples:
            return rows
    raise DataError(
        f"have {len(rows)} questions of at most {desk.size} tokens, need {desk.samples}; "
        "ask for fewer samples, a longer context, or give more questions"
    )


def _too_little(desk: Desk, have: int) -> DataError:
    samples, size = desk.samples, desk.size
    return DataError(
        f"have {have} tokens of text, need {samples * size} for {samples} samples of {size} tokens; "
        f"use samples={have // size}, a shorter context or more text"
        if have >= size
        else f"have {have} tokens of text, fewer than one sample of {size}; use a shorter context"
    )
