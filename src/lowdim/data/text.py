"""Documents from files: plain text, JSON lines, or a directory of both."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowdim.data.errors import DataError

_TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst")
_LINES_SUFFIXES = (".jsonl", ".ndjson")
_FIELDS = ("text", "question", "answer", "rationale")


@dataclass(frozen=True)
class Document:
    r"""Prose in ``text``, or a question with its answer and, where there is one, the reasoning in between.

    Example:
        >>> Document(question="2 + 2?", answer="4").prose
        'Question: 2 + 2?\nAnswer: 4'
    """

    text: str = ""
    question: str = ""
    answer: str = ""
    rationale: str = ""

    @property
    def prompt(self) -> str:
        """The question alone, up to where the answer would start."""
        return f"Question: {self.question}\nAnswer:"

    def answered(self, rationale: bool = False) -> str:
        """Return question and answer; with ``rationale``, the reasoning before "So the answer is"."""
        reply = f"{self.rationale} So the answer is {self.answer}." if rationale else self.answer
        return f"{self.prompt} {reply}"

    @property
    def prose(self) -> str:
        """The text, or the answered question of a document that has no text."""
        return self.text or self.answered()


def read(path: str | Path) -> list[Document]:
    """Read the documents of a text file, a JSON-lines file, or all such files below a directory.

    A text file is one document. A JSON line is an object with ``text``, or with ``question``, ``answer`` and
    optionally ``rationale``. Files of a directory are read in the order of their paths.

    Raises:
        DataError: the path does not exist, holds nothing, is not UTF-8 or not the JSON described above; the
            message names the file and the byte or the line.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in _TEXT_SUFFIXES + _LINES_SUFFIXES)
        if not files:
            kinds = ", ".join(_TEXT_SUFFIXES + _LINES_SUFFIXES)
            raise DataError(f"{path} holds no text: lowdim looks there for files that end in {kinds}")
        return [document for file in files for document in read(file)]
    if path.suffix in _LINES_SUFFIXES:
        return [from_record(record, where) for where, record in records(path)]
    return [Document(text=_content(path))]


def from_record(record: Mapping[str, Any], where: str) -> Document:
    """Make a document of one JSON object or one row of a data set.

    Args:
        record: the fields; those that are not a document's are ignored.
        where: file and line, or row, for messages.

    Raises:
        DataError: there is neither ``text`` nor ``question`` and ``answer``, or one of them is not a string.

    Example:
        >>> from_record({"question": "2 + 2?", "answer": "4", "id": 7}, "line 1").answer
        '4'
    """
    fields = {key: record[key] for key in _FIELDS if record.get(key) is not None}
    for key, value in fields.items():
        if not isinstance(value, str):
            raise DataError(f"{where}: {key!r} must be a string; got {type(value).__name__}")
    if not fields.get("text") and not ("question" in fields and "answer" in fields):
        have = ", ".join(map(repr, record)) or "nothing"
        raise DataError(f"{where}: expected 'text', or 'question' and 'answer'; found {have}")
    return Document(**fields)


def records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a JSON-lines file with "file, line n" for messages; blank lines are passed over.

    Raises:
        DataError: the file cannot be read, is empty, or a line is not a JSON object.
    """
    for number, line in enumerate(_content(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
        if not isinstance(record, dict):
            raise DataError(f"{where}: expected a JSON object; got {type(record).__name__}")
        yield where, record


def _content(path: Path) -> str:
    try:
        content = path.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.{_nearby(path)}") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}. "
            "Convert it first, for example with iconv -t UTF-8."
        ) from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if not content.strip():
        raise DataError(f"{path} is empty; give a file that holds text")
    return content


def _nearby(path: Path) -> str:
    if not path.parent.is_dir():
        return f" Nor does the directory {path.parent}."
    near = difflib.get_close_matches(path.name, [file.name for file in path.parent.iterdir()], n=1)
    return f" Did you mean {near[0]!r}?" if near else " Check the spelling, or give a full path."
