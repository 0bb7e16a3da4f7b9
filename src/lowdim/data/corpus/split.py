"""Many documents, read one at a time and split into those to train on and those to judge by."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowdim.data import sources, text, wiki
from lowdim.data.errors import DataError
from lowdim.data.text import Document


@dataclass(frozen=True)
class Corpus:
    """Where documents are.

    Args:
        train: "builtin", "builtin:NAME", files or directories.
        validation: share of the documents that is held out, or where such documents are; "builtin" is the half of the
            built-in text that "builtin" does not train on.
        separator: what stands between two documents of a text file; None takes a file for one document.
    """

    train: Sequence[str]
    validation: float | str = 0.02
    separator: str | None = None

    def split(self) -> Split:
        """Read everything once and decide which documents are held out.

        A document goes by a hash of what it says, so that equal ones stay together and the split depends on nothing
        else: held out are those with the smallest hashes.

        Raises:
            DataError: a source cannot be read or holds nothing, there are fewer than two different documents, or a
                separator is given and no text that it could cut.
        """
        self._check_separator()
        digest, keys = hashlib.sha256(), array("Q")  # eight bytes for each of what may be millions of documents
        for document in self._all():
            key = _key(document)
            digest.update(key)
            keys.append(_number(key))
        if not keys:
            raise DataError(f"{', '.join(self.train)} hold no text")
        if isinstance(self.validation, str):
            held = set[int]()
            for document in self._held():
                digest.update(b"held" + _key(document))
                held.add(_number(_key(document)))
            if not held:
                raise DataError(f"{self.validation} holds no text to validate on")
            if held.issuperset(keys):
                raise DataError(f"every document of {', '.join(self.train)} is in {self.validation} as well")
        else:
            different = np.unique(keys)
            if len(different) < 2:
                raise DataError(
                    f"{', '.join(self.train)} is one document, so that none is left to validate on. Give several files "
                    "or JSON lines, say what stands between documents (data.separator), or name a text of its own "
                    "(data.validation)"
                )
            count = min(len(different) - 1, max(1, round(self.validation * len(different))))
            held = set(different[:count].tolist())
        return Split(self, digest.hexdigest(), len(keys), frozenset(held))

    def _check_separator(self) -> None:
        given = [*self.train, *([self.validation] if isinstance(self.validation, str) else [])]
        files = [source for source in given if Path(source).exists() or source.partition(":")[0] != "builtin"]
        if self.separator is not None and not any(map(text.has_plain, files)):
            raise DataError(
                f"data.separator={self.separator!r} stands between documents of text files, and {', '.join(given)} "
                "hold none: records are documents by themselves. Leave it out"
            )

    def _all(self) -> Iterator[Document]:
        for source in self.train:
            yield from self._of(source)

    def _held(self) -> Iterator[Document]:
        if self.validation == "builtin":
            yield from (Document(text=article.text) for article in wiki.evaluation_articles())
        else:
            yield from self._of(str(self.validation))

    def _of(self, source: str) -> Iterator[Document]:
        if source.partition(":")[0] == "builtin" and not Path(source).exists():
            found = sources.read(source, "train on")[1]
            assert not isinstance(found, sources.Tokens)
            yield from found
            return
        yield from (document for document in text.stream(source, self.separator) if not document.blank)


@dataclass(frozen=True)
class Split:
    """A corpus, cut in two.

    Attributes:
        corpus: where the documents are.
        digest: sha256 of all of them, in their order, and of those of a validation text.
        documents: in the corpus, equal ones counted each time.
        held: hashes of those held out.
    """

    corpus: Corpus
    digest: str
    documents: int
    held: frozenset[int]

    def train(self) -> Iterator[Document]:
        """Yield the documents to train on, in their order."""
        return (document for document in self.corpus._all() if _number(_key(document)) not in self.held)

    def validation(self) -> Iterator[Document]:
        """Yield the documents held out, in their order."""
        if isinstance(self.corpus.validation, str):
            return self.corpus._held()
        return (document for document in self.corpus._all() if _number(_key(document)) in self.held)


def _key(document: Document) -> bytes:
    said = [document.question, document.answer, document.rationale, document.messages]
    said += [document.tools] if document.tools else []
    written = document.text + (json.dumps(said, sort_keys=True, default=str) if any(said) else "")
    return hashlib.blake2b(written.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _number(key: bytes) -> int:
    return int.from_bytes(key[:8], "big")
