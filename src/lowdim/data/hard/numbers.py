"""Word problems with a whole number for an answer, beside numbers that their own solutions pass through."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from typing import Any

from lowdim.core.random import derive_seed
from lowdim.data.questions import Question

CHOICES = 4


def questions(records: Iterable[dict[str, Any]]) -> Iterator[Question]:
    """Yield a question per problem whose answer is a whole number, and which needs no drawing.

    The wrong choices are numbers of the worked solution, which whoever stops half-way ends at, then numbers near the
    answer. Which of them are taken, and their order, is drawn by the problem's place in the file.

    Args:
        records: request records whose ``doc`` has ``problem``, ``solution`` and ``answer``.

    Example:
        >>> doc = {"problem": "Two bags hold 3 pears each. How many pears?", "solution": "2 * 3 = 6.", "answer": "6"}
        >>> [one] = questions([{"doc_id": 0, "doc": doc}])
        >>> one.choices, one.choices[one.label]
        (('6', '2', '7', '3'), '6')
    """
    for record in records:
        doc = record["doc"]
        if re.fullmatch(r"-?\d{1,9}", str(doc["answer"])) and "[asy]" not in doc["problem"]:
            yield _question(doc, int(doc["answer"]), random.Random(derive_seed(0, "numbers", record["doc_id"])))


def _question(doc: dict[str, Any], answer: int, draw: random.Random) -> Question:
    passed = [int(text.replace(",", "")) for text in re.findall(r"\d{1,3}(?:,\d{3})+|\d{1,9}", doc["solution"])]
    near = [answer + 1, answer - 1, answer + 2, answer + 10, 2 * answer + 1]
    own = [number for number in dict.fromkeys(passed) if number != answer]
    draw.shuffle(own)
    wrong = list(dict.fromkeys(number for number in [*own, *near] if number != answer))[: CHOICES - 1]
    choices = [answer, *wrong]
    draw.shuffle(choices)
    context = f"Question: {doc['problem'].strip()}\nAnswer:"
    return Question((context,) * len(choices), tuple(f" {number}" for number in choices), choices.index(answer))
