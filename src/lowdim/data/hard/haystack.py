"""A question about one of several passages: its answer has to be found in a long text, beside answers to others."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from lowdim.core.random import derive_seed
from lowdim.data.questions import Question

CHOICES = 4
LENGTH = 4000
"""Characters that the passages of a question have at most, unless four of them are longer: some 900 tokens."""


@dataclass(frozen=True)
class _Asked:
    title: str
    passage: str
    question: str
    answer: str

    @property
    def counts(self) -> bool:
        """Whether the answer has a number in it: what is wrong must not be told by its kind."""
        return bool(re.search(r"\d", self.answer))


def questions(records: Iterable[dict[str, Any]]) -> Iterator[Question]:
    """Yield a question per record: passages of several titles, one of which holds the answer, then the question.

    The wrong choices are answers that stand in the other passages, with a number in them where the right one has one.
    Which passages stand beside the right one, and where it stands, is drawn by the record's place in the file.

    Args:
        records: request records whose ``doc`` has ``title``, ``query`` and ``choices``, as those of SQuAD do.
    """
    asked = [_asked(record["doc"]) for record in records]
    for place, one in enumerate(asked):
        draw = random.Random(derive_seed(0, "haystack", place))
        beside = _beside(one, draw.sample(asked, len(asked)))
        if len(beside) >= CHOICES - 1:
            yield _question(one, beside, draw)


def _asked(doc: dict[str, Any]) -> _Asked:
    about, _, question = doc["query"].removesuffix("\nAnswer:").rpartition("\nQuestion: ")
    _, _, passage = about.partition("\nBackground: ")
    return _Asked(doc["title"].replace("_", " "), passage.strip(), question.strip(), str(doc["choices"][0]).strip())


def _beside(one: _Asked, others: Iterable[_Asked]) -> list[_Asked]:
    """Return the passages that stand beside the right one, those whose answers are choices first."""
    found: list[_Asked] = []
    length, titles, answers = len(one.passage), {one.title}, {one.answer.casefold()}
    for other in others:
        enough = len(found) >= CHOICES - 1
        if enough and length + len(other.passage) > LENGTH:
            break
        wrong = other.answer.casefold()
        told = any(wrong in answer or answer in wrong for answer in answers) or other.answer in one.passage
        if other.title in titles or (not enough and (told or other.counts != one.counts)):
            continue
        if one.answer.casefold() in other.passage.casefold():
            continue
        found.append(other)
        length, titles, answers = length + len(other.passage), titles | {other.title}, answers | {wrong}
    return found


def _question(one: _Asked, beside: list[_Asked], draw: random.Random) -> Question:
    passages = [one, *beside]
    draw.shuffle(passages)
    text = "\n\n".join(f"{each.title}: {each.passage}" for each in passages)
    choices = [each.answer for each in [one, *beside[: CHOICES - 1]]]
    draw.shuffle(choices)
    context = f"{text}\n\nQuestion: {one.question}\nAnswer:"
    return Question((context,) * len(choices), tuple(f" {text}" for text in choices), choices.index(one.answer))
