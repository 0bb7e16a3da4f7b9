"""Documents from files: plain text, JSON, JSON lines, or a directory of them."""

from __future__ import annotations

import contextlib
import difflib
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from lowdim.data.errors import PACKED, REFUSED, TABLE, DataError, check_suffix

_TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst")
_RECORD_SUFFIXES = (".json", ".jsonl", ".ndjson")
_PIECE = 1 << 20  # characters of a text file that are read at a time
_FIELDS = ("text", "question", "answer", "rationale")
_CHATS = ("messages", "conversations")
_ROLES = {"human": "user", **dict.fromkeys(("gpt", "chatgpt", "bard", "bing"), "assistant")}


@dataclass(frozen=True)
class Document:
    r"""Prose in ``text``; a question with its answer and, where there is one, the reasoning in between; or a chat.

    Attributes:
        text: prose.
        question: a question.
        answer: its answer.
        rationale: the reasoning between them.
        messages: the turns of a chat, each with "role" and "content".
        tools: what the chat's model may call, as JSON schemas.

    Example:
        >>> Document(question="2 + 2?", answer="4").prose
        'Question: 2 + 2?\nAnswer: 4'
    """

    text: str = ""
    question: str = ""
    answer: str = ""
    rationale: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def asks(self) -> bool:
        """Whether there is a question with an answer."""
        return bool(self.question.strip() and self.answer.strip())

    @property
    def blank(self) -> bool:
        """Whether there is nothing to read."""
        return not (self.text.strip() or self.asks or self.messages)

    @property
    def chat(self) -> bool:
        """Whether the turns of a chat are all there is."""
        return bool(self.messages) and not (self.text.strip() or self.asks)

    @property
    def prompt(self) -> str:
        """The question alone, up to where the answer would start."""
        return f"Question: {self.question}\nAnswer:"

    def answered(self, rationale: bool = False) -> str:
        """Return question and answer; with ``rationale``, the reasoning, a full stop and "So the answer is" between.

        Example:
            >>> Document(question="2 + 2?", answer="4", rationale="Twice two").answered(rationale=True)[-30:]
            'Twice two. So the answer is 4.'
        """
        reason = self.rationale.rstrip()
        stop = "" if reason.endswith((".", "!", "?")) else "."
        reply = f"{reason}{stop} So the answer is {self.answer}." if rationale else self.answer
        return f"{self.prompt} {reply}"

    @property
    def prose(self) -> str:
        """The text, or the answered question of a document that has no text."""
        return self.answered() if self.asks and not self.text.strip() else self.text


def read(path: str | Path) -> list[Document]:
    """Read the documents of a file, or of all such files below a directory.

    A text file is one document, unless it holds JSON. A JSON file holds an array of records or one record a line: an
    object with ``text``; with ``question``, ``answer`` and optionally ``rationale``; or with the turns of a chat in
    ``messages`` or ``conversations``. Case does not matter in a suffix. Files of a directory are read in the order of
    their paths.

    JSON of another form in a text file (arrays or strings, one a line; values one behind the other, over several lines
    each) is refused, for its brackets and quotes are no prose. One number, or one word in quotes, is prose: it parses
    as JSON by chance.

    Raises:
        DataError: the path does not exist, holds nothing, is of a format that is not read here, is not UTF-8 or not
            the JSON described above; the message names the file and the byte or the line.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return [document for file in below(path) for document in read(file)]
    check_suffix(path)
    content = _content(path)
    if path.suffix.lower() in _RECORD_SUFFIXES or _holds_json(content):
        return [from_record(record, where) for where, record in _records(path, content)]
    _check_prose(path, content)
    return [Document(text=content)]


def stream(path: str | Path, separator: str | None = None) -> Iterator[Document]:
    """Yield the documents that `read` returns without holding all of a large file: JSON lines one by one.

    Args:
        path: see `read`.
        separator: what stands between two documents of a text file, which is then read piece by piece.

    Raises:
        DataError: see `read`.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        for file in below(path):
            yield from stream(file, separator)
        return
    check_suffix(path)
    record = path.suffix.lower() in _RECORD_SUFFIXES
    if not path.is_file() or not (record or separator):
        yield from read(path)
        return
    try:
        with path.open(encoding="utf-8-sig") as source:
            if _begins_with_json(path, (dict, list) if record else (dict,)):
                for number, line in enumerate(source, start=1):
                    if line.strip():
                        yield from _row(path, line, number)
            elif separator and not record:
                head = source.read(_PIECE)
                _check_characters(path, head)
                if head.lstrip()[:1] in ("{", "["):  # only the whole tells it from prose
                    head += source.read()
                if head.strip() and _holds_json(head):
                    yield from read(path)
                    return
                _check_prose(path, head if len(head) != _PIECE else head.rpartition("\n")[0])
                yield from (Document(text=text) for text in _cut(head, source, separator))
            else:
                yield from read(path)
    except UnicodeDecodeError:
        yield from read(path)  # which says where


def has_plain(path: str | Path) -> bool:
    """Tell whether a file, or any in a directory, is text rather than records, by its name and its first line."""
    path = Path(path).expanduser()
    files = below(path) if path.is_dir() else [path]
    return any(file.suffix.lower() not in _RECORD_SUFFIXES and not _begins_with_json(file) for file in files)


def _begins_with_json(path: Path, kinds: tuple[type, ...] = (dict, list)) -> bool:
    """Whether the first line of a file that can be read is JSON; what cannot is told when it is read."""
    try:
        with path.open(encoding="utf-8-sig") as source:
            return _is_json(next((line for line in source if line.strip()), ""), kinds)
    except (OSError, UnicodeDecodeError):
        return False


def _row(path: Path, line: str, number: int) -> list[Document]:
    """Return the documents of a line of JSON: one, or those of a whole array."""
    value, where = _parsed(path, line, number), f"{path}, line {number}"
    if isinstance(value, list):
        return [from_record(_object(row, f"{where}, item {i}"), where) for i, row in enumerate(value, start=1)]
    return [from_record(_object(value, where), where)]


def _cut(head: str, file: TextIO, separator: str) -> Iterator[str]:
    rest, piece = "", head
    while piece:
        *whole, rest = (rest + piece).split(separator)
        yield from whole
        piece = file.read(_PIECE)
    yield rest


def from_record(record: Mapping[str, Any], where: str) -> Document:
    """Make a document of one JSON object or one row of a data set; fields that are null or blank make a blank one.

    Args:
        record: the fields; those that are not a document's are ignored.
        where: file and line, or row, for messages.

    Raises:
        DataError: there is neither ``text`` nor ``question`` and ``answer`` nor a chat, or one is of another type.

    Example:
        >>> from_record({"question": "2 + 2?", "answer": "4", "id": 7}, "line 1").answer
        '4'
        >>> from_record({"text": None}, "line 2").blank
        True
    """
    fields = {key: record[key] for key in _FIELDS if record.get(key) is not None}
    for key, value in fields.items():
        if not isinstance(value, str):
            raise DataError(f"{where}: {key!r} must be a string; got {type(value).__name__}")
    chat = next((key for key in _CHATS if key in record), None)
    if "text" not in record and not {"question", "answer"} <= record.keys() and chat is None:
        have = ", ".join(map(repr, record)) or "nothing"
        raise DataError(f"{where}: expected 'text', or 'question' and 'answer'; found {have}. Chats go in 'messages'")
    if chat is None:
        return Document(**fields)
    messages = turns(record[chat], f"{where}: {chat!r}")
    return Document(**fields, messages=messages, tools=tools_of(record, where))


def tools_of(record: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], ...]:
    """Return the tools beside a chat; data sets hold them as JSON too."""
    found = record.get("tools") or []
    with contextlib.suppress(ValueError):
        found = (json.loads(found) or []) if isinstance(found, str) else found
    if not isinstance(found, (list, tuple)) or not all(isinstance(tool, Mapping) for tool in found):
        raise DataError(f"{where}: 'tools' must be a list of objects, JSON schemas; got {found!r:.60}")
    return tuple(found)


def turns(value: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    """Return the turns of a chat by the names of today: role and content."""
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)) or not all(isinstance(turn, Mapping) for turn in value):
        raise DataError(f"{where} must be a list of turns with 'role' and 'content'; got {type(value).__name__}")
    return tuple(_turn(turn, where) for turn in value)


def _turn(turn: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    if {"from", "value"} <= turn.keys():
        said = turn["from"]
        found = {"role": _ROLES.get(said, said) if isinstance(said, str) else said, "content": turn["value"]}
    elif "role" in turn and ("content" in turn or turn.get("tool_calls")):
        found = {"content": None, **turn}
    else:
        have = ", ".join(map(repr, turn)) or "nothing"
        raise DataError(f"{where}: a turn has 'role' and 'content', or 'from' and 'value'; found {have}")
    role, content = found["role"], found["content"]
    if not (isinstance(role, str) and isinstance(content or "", (str, list))):
        got = f"{type(role).__name__} and {type(content).__name__}"
        raise DataError(f"{where}: 'role' of a turn is a string, and 'content' too or a list of parts; got {got}")
    return found


def records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a file of JSON or JSON lines, with "file, line n" or "file, item n" for messages.

    Raises:
        DataError: the file cannot be read, is empty, or a line or item is not a JSON object.
    """
    check_suffix(path)
    return _records(path, _content(path))


def _records(path: Path, content: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for place, record in _values(path, content):
        where = f"{path}, {place}"
        yield where, _object(record, where)


def _object(record: Any, where: str) -> dict[str, Any]:
    """Return a record; null is a blank one."""
    record = {"text": None} if record is None else record
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a JSON object; got {type(record).__name__}")
    return record


def _values(path: Path, content: str) -> Iterator[tuple[str, Any]]:
    """Yield the items of a JSON array, the one object of a file, or JSON lines, of which blank ones are passed over."""
    lines = [(number, line) for number, line in enumerate(content.split("\n"), start=1) if line.strip()]
    if len(lines) > 1 and _is_json(lines[0][1]):
        yield from ((f"line {number}", _parsed(path, line, number)) for number, line in lines)
        return
    whole = _parsed(path, content, 1)
    if isinstance(whole, list):
        yield from ((f"item {number}", item) for number, item in enumerate(whole, start=1))
    else:
        yield f"line {lines[0][0]}", whole


def _parsed(path: Path, content: str, line: int) -> Any:
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        at = f"{path}, line {line + error.lineno - 1}"
        raise DataError(f"{at}: not JSON ({error.msg} at column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}, line {line}: not JSON that can be read ({error})") from None


def _is_json(content: str, kinds: tuple[type, ...] = (dict, list)) -> bool:
    """Whether a text is an object or an array of JSON, or a value of other kinds."""
    try:
        return isinstance(json.loads(content), kinds)
    except (ValueError, RecursionError):
        return False


def _holds_json(content: str) -> bool:
    """Whether a file of text is JSON in truth, or JSON lines by its first line."""
    first = content.lstrip().partition("\n")[0]
    return first[0] in "{[" and (_is_json(content) or (first[0] == "{" and _is_json(first)))


def _check_prose(path: Path, content: str) -> None:
    """Refuse a text that is JSON of a form that is not read here; see `read`."""
    if content.lstrip()[:1] not in ("{", "[", '"'):
        return
    lines = [line for line in content.split("\n") if line.strip()]
    if len(lines) > 1 and all(_is_json(line, (dict, list, str)) for line in lines):
        raise DataError(
            f"{path} is JSON and no prose: every line is a value, and not all are objects. Write an object with a "
            "field 'text' on each line, and name the file .jsonl"
        )
    if _in_a_row(content):
        raise DataError(
            f"{path} is JSON and no prose: objects or arrays one behind the other. Write one object a line, for "
            "example with jq -c ., and name the file .jsonl"
        )


def _in_a_row(content: str) -> bool:
    """Whether a text is several objects or arrays of JSON, one behind the other, and nothing else."""
    decoder, rest, count, at = json.JSONDecoder(), content.strip(), 0, 0
    while at < len(rest):
        if rest[at] not in "{[":
            return False
        try:
            at = decoder.raw_decode(rest, at)[1]
        except (ValueError, RecursionError):
            return False
        count += 1
        while at < len(rest) and rest[at].isspace():
            at += 1
    return count > 1


def below(folder: Path, records: bool = False) -> list[Path]:
    """Return the files of a directory that hold documents, or ``records`` alone; other formats of data are told.

    What is hidden in it (".git", ".ipynb_checkpoints", "._notes.txt") is passed over.

    Raises:
        DataError: there is no such file.
    """
    kinds = _RECORD_SUFFIXES if records else _TEXT_SUFFIXES + _RECORD_SUFFIXES
    every = ((file, file.relative_to(folder).parts) for file in sorted(folder.rglob("*")))
    files = [file for file, parts in every if not any(part.startswith(".") for part in parts) and file.is_file()]
    found = [file for file in files if file.suffix.lower() in kinds]
    others = [file for file in files if REFUSED.get(file.suffix.lower()) in (TABLE, PACKED)]
    if others and not found:
        check_suffix(others[0])
    if others:
        rest = f" and {len(others) - 1} more files" if len(others) > 1 else ""
        warnings.warn(f"{others[0]}{rest} passed over: lowdim reads {REFUSED[others[0].suffix.lower()]}", stacklevel=4)
    if not found:
        raise DataError(f"{folder} holds no text: lowdim looks there for files that end in {', '.join(kinds)}")
    return found


def _content(path: Path) -> str:
    try:
        content = path.read_bytes().decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
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
    _check_characters(path, content)
    return content


def _check_characters(path: Path, content: str) -> None:
    if (at := content.find("\0")) >= 0:
        raise DataError(
            f"{path} is no text: its character {at} is a zero, as in programs' own files and in UTF-16. Convert it "
            "first, for example with iconv -f UTF-16 -t UTF-8."
        )


def _nearby(path: Path) -> str:
    if not path.parent.is_dir():
        return f" Nor does the directory {path.parent}."
    near = difflib.get_close_matches(path.name, [file.name for file in path.parent.iterdir()], n=1)
    return f" Did you mean {near[0]!r}?" if near else " Check the spelling, or give a full path."
