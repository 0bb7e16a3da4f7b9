"""Text to classify: which of twenty Wikipedia articles, or newsgroups, does it come from; is the answer yes or no."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from lowdim.core.lazy import torch
from lowdim.data import assets, questions, wiki
from lowdim.data.raw import Raw, Texts

ARTICLES, WORDS, LENGTH = 20, 4096, 128
_WORD = re.compile(r"[a-z]+|\d+")
_FIRST = 2  # 0 stands behind the end, 1 for an unknown word


def wiki_topics() -> Raw:
    """Read the paragraphs of the twenty longest articles of the built-in Wikipedia slice; the class is the article.

    Paragraphs of one article share people, places and words, so that words alone tell most of them apart; what is
    tested are other paragraphs of the same articles.
    """
    paragraphs = [(article.title, article.text.split("\n")) for article in wiki.articles()]
    longest = sorted(paragraphs, key=lambda pair: (-len(pair[1]), pair[0]))[:ARTICLES]
    y = [number for number, (_, texts) in enumerate(longest) for _ in texts]
    return Raw(
        [text for _, texts in longest for text in texts],
        torch.tensor(y, dtype=torch.int64),
        tuple(title for title, _ in longest),
    )


def newsgroups() -> Raw:
    """Read 20 Newsgroups: 11,293 letters to train on and 7,528 to test, in small letters, without headers."""
    home = assets.path("20-newsgroups")
    (train, labels), (test, tested) = (_tab(home / f"20newsgroups-{part}.tab") for part in ("train", "test"))
    classes = tuple(sorted(set(labels)))
    y, held = (torch.tensor([classes.index(each) for each in part]) for part in (labels, tested))
    return Raw(train, y, classes, Texts(test, held))


def boolq() -> Raw:
    """Read the 3,270 questions of BoolQ's validation part, each before its paragraph; nobody set a test part aside.

    62% have the answer yes, and words alone say little of it: what is planted is learnt first. Paper: "BoolQ: Exploring
    the Surprising Difficulty of Natural Yes/No Questions", NAACL 2019, arXiv 1905.10044.
    """
    asked = questions.builtin("boolq/rc_0shot")
    parts = [questions.bare(each.contexts[0]).rpartition("\nQuestion: ") for each in asked]
    answers = ("no", "yes")
    y = torch.tensor([answers.index(each.choices[each.label]) for each in asked])
    return Raw([f"{question} {paragraph}" for paragraph, _, question in parts], y, answers)


def _tab(path: Path) -> tuple[list[str], list[str]]:
    """Return the texts and classes of a table whose first three rows are its head."""
    csv.field_size_limit(1 << 24)
    with path.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in list(csv.reader(stream, delimiter="\t"))[3:] if row and row[0]]
    return [row[1] for row in rows], [row[0] for row in rows]


def vocabulary(texts: Iterable[str], most: int = WORDS - _FIRST) -> tuple[str, ...]:
    """Return the most frequent words, the most frequent first, ties by alphabet.

    Example:
        >>> vocabulary(["Tin is a metal.", "A soft metal"], 3)
        ('a', 'metal', 'is')
    """
    counts = Counter(word for text in texts for word in _WORD.findall(text.lower()))
    return tuple(sorted(counts, key=lambda word: (-counts[word], word))[:most])


def encode(texts: Sequence[str], words: Sequence[str], length: int = LENGTH) -> torch.Tensor:
    """Return the ids of the first words of each text.

    Args:
        texts: what to encode.
        words: the vocabulary; its first word has id 2, a word outside it id 1.
        length: words per text; shorter texts end in zeros.

    Returns:
        int64 [texts, length].

    Example:
        >>> encode(["a soft metal"], ["a", "metal"], 4).tolist()
        [[2, 1, 3, 0]]
    """
    ids = {word: number for number, word in enumerate(words, start=_FIRST)}
    rows = torch.zeros(len(texts), length, dtype=torch.int64)
    for row, text in zip(rows, texts, strict=True):
        found = [ids.get(word, 1) for word in _WORD.findall(text.lower())[:length]]
        row[: len(found)] = torch.tensor(found, dtype=torch.int64)
    return rows
