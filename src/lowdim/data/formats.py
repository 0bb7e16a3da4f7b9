"""How documents become calibration samples: windows of prose, or questions and answers in four arrangements.

Paper: Is C4 Dataset Optimal for Pruning? An Investigation of Calibration Data for LLM Pruning,
arXiv 2410.07461.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lowdim.core.errors import suggest
from lowdim.core.lazy import torch
from lowdim.data import tokens
from lowdim.data.errors import DataError
from lowdim.data.text import Document

FORMATS = ("text", "zero", "single", "concat")
SEPARATOR = "\n\n"


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
        if self.format not in FORMATS:
            raise DataError(f"unknown calibration format {self.format!r}. {suggest(self.format, FORMATS)}")
        if self.padding not in ("left", "right"):
            raise DataError(f"padding is 'left' or 'right'; got {self.padding!r}")
        for name in ("samples", "context", "in_context"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DataError(f"{name} must be at least 1; got {value}")
        for name, given, allowed in (
            ("rationale", self.rationale, ("single", "concat")),
            ("in_context", self.in_context is not None, ("concat",)),
        ):
            if given and self.format not in allowed:
                raise DataError(f"{name} works with format {' or '.join(allowed)}; got format {self.format!r}")


def arrange(documents: Sequence[Document], tokenizer: Any, layout: Layout, rng: torch.Generator) -> list[list[int]]:
    """Return ``layout.samples`` lists of at most ``layout.context`` token ids.

    - ``text``: random windows of the documents. Each document gives one window at a random place, those
      shorter than the context are joined; while samples are missing, what is left of the documents gives
      further windows. No token is used twice, and ``samples * context`` tokens are always enough.
    - ``zero``: a question without its answer. ``single``: a question with its answer.
    - ``concat``: questions with answers until the window is full, or ``in_context`` whole ones. All questions
      are used before one comes back. Questions longer than the context are passed over.

    Raises:
        DataError: too little text, or documents that do not suit the format.
    """
    rows = _Rows(tokenizer, layout, rng)
    if rows.size < 1:
        raise DataError(f"context={layout.context} leaves no room beside the start-of-text token")
    if layout.format == "text":
        return rows.windows(documents)
    _check_questions(documents, layout)
    return rows.concatenated(documents) if layout.format == "concat" else rows.separate(documents)


def _check_questions(documents: Sequence[Document], layout: Layout) -> None:
    for number, document in enumerate(documents, start=1):
        if not document.question:
            raise DataError(
                f"format {layout.format!r} needs questions and answers, but document {number} is plain text; "
                "use format 'text', or JSON lines with 'question' and 'answer'"
            )
        if layout.rationale and not document.rationale:
            raise DataError(f"rationale is asked for, but document {number} has no field 'rationale'")


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


class _Rows:
    def __init__(self, tokenizer: Any, layout: Layout, rng: torch.Generator) -> None:
        self.tokenizer, self.layout, self.rng = tokenizer, layout, rng
        self.separator = tokens.encode(tokenizer, SEPARATOR, "none")
        self.start = tokens.prefix(tokenizer, layout.bos, opening=layout.format != "text")
        self.size = layout.context - len(self.start)

    def windows(self, documents: Sequence[Document]) -> list[list[int]]:
        wanted, windows, short = self.layout.samples, list[list[int]](), _Joined(self.separator)
        prose = (documents[i].prose for i in self._order(documents))
        pieces: Iterable[list[int]] = (tokens.encode(self.tokenizer, text, self.layout.bos) for text in prose)
        while True:
            rest: list[list[int]] = []
            for piece in pieces:
                if len(piece) < self.size:
                    short.add(piece)
                else:
                    at = self._draw(len(piece) - self.size + 1)
                    windows.append(piece[at : at + self.size])
                    rest += [piece[:at], piece[at + self.size :]]
                if len(windows) + len(short.ids) // self.size >= wanted:
                    return [self.start + row for row in (windows + short.cut(self.size))[:wanted]]
            if not rest:
                raise self._too_little(len(windows) * self.size + short.own)
            pieces = rest

    def separate(self, documents: Sequence[Document]) -> list[list[int]]:
        rows: list[list[int]] = []
        for question in self._questions(documents):
            rows.append(self.start + question)
            if len(rows) == self.layout.samples:
                return rows
        raise DataError(
            f"have {len(rows)} questions of at most {self.size} tokens, need {self.layout.samples}; "
            "ask for fewer samples, a longer context, or give more questions"
        )

    def concatenated(self, documents: Sequence[Document]) -> list[list[int]]:
        questions = self._endless(documents)
        question = next(questions)
        most = self.layout.in_context or sys.maxsize
        rows: list[list[int]] = []
        while len(rows) < self.layout.samples:
            row, whole = _Joined(self.separator), 0
            while whole < most and row.fits(question, self.size):
                row.add(question)
                question, whole = next(questions), whole + 1
            if self.layout.in_context is None:
                row.add(question)  # its start fills the window
                question = next(questions)
            rows.append(self.start + row.ids[: self.size])
        return rows

    def _endless(self, documents: Sequence[Document]) -> Iterator[list[int]]:
        found = True
        while found:
            found = False
            for question in self._questions(documents):
                found = True
                yield question
        raise DataError(f"no question fits in {self.layout.context} tokens; use a longer context")

    def _questions(self, documents: Sequence[Document]) -> Iterator[list[int]]:
        for i in self._order(documents):
            document = documents[i]
            text = document.answered(self.layout.rationale) if self.layout.format != "zero" else document.prompt
            ids = tokens.encode(self.tokenizer, text, "none")
            if len(ids) <= self.size:
                yield ids

    def _order(self, documents: Sequence[Document]) -> list[int]:
        return torch.randperm(len(documents), generator=self.rng).tolist()

    def _draw(self, choices: int) -> int:
        return int(torch.randint(choices, (1,), generator=self.rng))

    def _too_little(self, have: int) -> DataError:
        samples, size = self.layout.samples, self.size
        return DataError(
            f"have {have} tokens of text, need {samples * size} for {samples} samples of {size} tokens; "
            f"use samples={have // self.size}, a shorter context or more text"
            if have >= self.size
            else f"have {have} tokens of text, fewer than one sample of {self.size}; use a shorter context"
        )
