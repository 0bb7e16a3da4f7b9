"""Tokens of a split corpus on disk: made once in bounded memory, then mapped by whoever trains on it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from lowdim.core.files import read_json
from lowdim.data import assets, tokens
from lowdim.data.corpus import chat
from lowdim.data.corpus.split import Split
from lowdim.data.corpus.vocabulary import learn
from lowdim.data.errors import DataError
from lowdim.data.text import Document

FORMAT = 1
_ANSWERS = "blank ones are none"  # what counts of a chat
PARTS = ("train", "validation")
_AT_ONCE = 1 << 22  # characters that are encoded together
_LONGEST = 1 << 17  # characters of one text for the tokenizer, whose memory is many times that


@dataclass(frozen=True, eq=False)
class Part:
    """The tokens of one side of a split, mapped from disk.

    Attributes:
        ids: token ids, one document after the other, ``[tokens]``.
        starts: where each begins, and where the last ends, ``[documents + 1]``.
        counted: whether a token belongs to an answer, ``[tokens]``; None where all count.
        first: place within its document of the first that does, ``[documents]``; None where all count.
    """

    ids: NDArray[Any]
    starts: NDArray[np.int64]
    counted: NDArray[np.bool_] | None = None
    first: NDArray[np.int64] | None = None


@dataclass(frozen=True, eq=False)
class Tokenised:
    """A corpus as tokens.

    Attributes:
        train: to train on.
        validation: to judge by.
        facts: what they are: hash, documents and tokens of each side, tokenizer.
    """

    train: Part
    validation: Part
    facts: dict[str, Any]


def learnt(split: Split, size: int) -> Any:
    """Return a tokenizer learnt from the training side of a split, from the cache if it was before."""
    home = _home("tokenizers", {"format": FORMAT, "text": split.digest, "held": _held(split), "size": size})

    def make(place: Path) -> None:
        learn((document.prose for document in split.train()), size).save_pretrained(place)

    _made(home, make)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(home, local_files_only=True)


def tokenised(
    split: Split,
    tokenizer: Any,
    kind: str = "text",
    advance: Callable[[int], None] = lambda _: None,
    train: bool = True,
) -> Tokenised:
    """Return a corpus as tokens; they are made once for the same documents, split and tokenizer.

    Of "text" every document ends with the end-of-text token, if the tokenizer has one; where it has only one that
    starts a text, documents begin with that. Of "sft" see `lowdim.data.corpus.chat.encode`.

    Args:
        split: what is to be encoded.
        tokenizer: one of Transformers.
        kind: "text" or "sft".
        advance: told how many documents were encoded.
        train: whether the training side is wanted; if not, it is empty.

    Raises:
        DataError: a document does not suit the kind.
    """
    identity = {
        "format": FORMAT,
        "text": split.digest,
        "held": _held(split),
        "kind": kind,
        "tokenizer": identify(tokenizer),
        **({} if train else {"train": "streamed"}),
        **({"answers": _ANSWERS} if kind == "sft" else {}),
    }
    home = _home("tokens", identity)

    def make(place: Path) -> None:
        width = np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32
        sizes = {}
        for name, documents in zip(PARTS, (split.train() if train else (), split.validation()), strict=True):
            sizes[name] = _write(place, name, documents, tokenizer, kind, np.dtype(width), advance)
        facts = {**identity, "hash": home.name, "vocabulary": tokens.describe(tokenizer), "dtype": width.__name__}
        (place / "facts.json").write_text(json.dumps({**facts, **sizes}, indent=2), encoding="utf-8")

    _made(home, make)
    facts = read_json(home / "facts.json")
    own, validation = (_open(home, name, facts) for name in PARTS)
    return Tokenised(own, validation, facts)


def identify(tokenizer: Any) -> str:
    """Return a hash of all that decides what a tokenizer makes of a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = "" if backend is None else backend.to_str()
    said = [tokens.describe(tokenizer), rules, getattr(tokenizer, "chat_template", None), tokenizer.eos_token_id]
    return hashlib.sha256(json.dumps(said, default=str).encode()).hexdigest()[:32]


def _held(split: Split) -> str:
    return hashlib.sha256(json.dumps(sorted(split.held)).encode()).hexdigest()[:32]


def _home(kind: str, identity: dict[str, Any]) -> Path:
    return assets.cache_dir() / kind / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


def _made(home: Path, make: Callable[[Path], None]) -> None:
    """Let a directory of the cache appear, complete, unless it is there; one process makes it."""
    if os.path.exists(home):  # in a cache that may be for reading alone
        return
    with assets.locked(home):
        if home.exists():
            return
        partial = home.with_name(f".{home.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a process that died: the lock is ours
        partial.mkdir()
        try:
            make(partial)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        os.rename(partial, home)


def _write(
    place: Path,
    name: str,
    documents: Iterable[Document],
    tokenizer: Any,
    kind: str,
    dtype: np.dtype[Any],
    advance: Callable[[int], None],
) -> dict[str, int]:
    """Write one side; return how many documents and tokens it has."""
    counts = {"documents": 0, "tokens": 0, "counted": 0}
    with (
        _file(place, name, "ids") as ids,
        _file(place, name, "starts") as starts,
        _file(place, name, "counted") as some,
        _file(place, name, "first") as first,
    ):
        starts.write(np.int64(0).tobytes())
        for row, answer in _encoded(documents, tokenizer, kind):
            ids.write(np.asarray(row, dtype).tobytes())
            counts["documents"] += 1
            counts["tokens"] += len(row)
            counts["counted"] += len(row) if answer is None else sum(answer)
            starts.write(np.int64(counts["tokens"]).tobytes())
            if answer is not None:
                some.write(np.asarray(answer, np.bool_).tobytes())
                first.write(np.int64(answer.index(True) if True in answer else len(row)).tobytes())
            advance(1)
    return counts


def _file(place: Path, name: str, what: str) -> IO[bytes]:
    return (place / f"{name}.{what}").open("wb")


def _open(home: Path, name: str, facts: dict[str, Any]) -> Part:
    def mapped(what: str, dtype: Any) -> NDArray[Any]:
        path = home / f"{name}.{what}"
        return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)

    answers = facts["kind"] == "sft"
    return Part(
        mapped("ids", facts["dtype"]),
        mapped("starts", np.int64),
        mapped("counted", np.bool_) if answers else None,
        mapped("first", np.int64) if answers else None,
    )


def _encoded(documents: Iterable[Document], tokenizer: Any, kind: str) -> Iterator[tuple[list[int], list[bool] | None]]:
    for batch in _batches(documents):
        if kind == "sft":
            yield from chat.encode(tokenizer, batch)
        else:
            yield from ((row, None) for row in encode(tokenizer, batch))


def encode_all(documents: Iterable[Document], tokenizer: Any) -> Iterator[list[int]]:
    """Yield the token ids of many documents, encoded some at a time."""
    for batch in _batches(documents):
        yield from encode(tokenizer, batch)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch, size = list[Document](), 0
    for document in documents:
        batch.append(document)
        size += len(document.text) + 200
        if size >= _AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def encode(tokenizer: Any, documents: Iterable[Document]) -> Iterator[list[int]]:
    """Yield the token ids of documents; very long ones are encoded in pieces, each from the start of a line."""
    pieces = [[*_pieces(tokens.written(tokenizer, document))] for document in documents]
    flat = tokenizer([text for each in pieces for text in each], add_special_tokens=False, verbose=False)["input_ids"]
    rows, end, begin = iter(flat), tokenizer.eos_token_id, tokenizer.bos_token_id
    before = [begin] if end is None and begin is not None else []
    for each in pieces:
        row = [token for _ in each for token in next(rows)]
        yield [*before, *row, *([] if end is None else [end])]


def _pieces(text: str) -> Iterator[str]:
    tokens.check_unicode(text)
    start = 0
    while len(text) - start > _LONGEST:
        stop = text.rfind("\n", start, start + _LONGEST) + 1 or start + _LONGEST
        stop = start + _LONGEST if stop <= start else stop
        yield text[start:stop]
        start = stop
    yield text[start:]


def check_tokens(part: Part, least: int, what: str) -> None:
    """Refuse a side that holds less than one sequence.

    Raises:
        DataError: says how many tokens there are.
    """
    if len(part.ids) < least:
        raise DataError(
            f"the {what} text has {len(part.ids):,} tokens, fewer than one sequence of {least:,}. Give more text, or a "
            "smaller length"
        )
