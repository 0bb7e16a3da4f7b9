"""Pairs of answers of which one is preferred, or neither: read from files, made of questions, or made up."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowdim.core.errors import suggest
from lowdim.data import questions, text
from lowdim.data.errors import DataError
from lowdim.data.questions import Question
from lowdim.data.text import Document

SYNTHETIC = "preferences"
SCORES = ("score_chosen", "score_rejected")
_TIES = 'write for every pair whether neither answer is preferred: "tie": true or false'


@dataclass(frozen=True)
class Pair:
    """A prompt and two answers to it.

    Attributes:
        prompt: the turns before the answers, each with "role" and "content".
        chosen: the answer that is preferred; of a tie, the first one.
        rejected: the other.
        tie: whether neither is preferred; None where nobody says.
        where: file and line, for messages.
        tools: what may be called, as JSON schemas.
    """

    prompt: tuple[Mapping[str, Any], ...]
    chosen: str
    rejected: str
    tie: bool | None = None
    where: str = ""
    tools: tuple[Mapping[str, Any], ...] = ()

    def documents(self) -> tuple[Document, Document]:
        """Return both as chats."""
        chosen, rejected = (
            Document(messages=(*self.prompt, {"role": "assistant", "content": answer}), tools=self.tools)
            for answer in (self.chosen, self.rejected)
        )
        return chosen, rejected

    @property
    def key(self) -> bytes:
        """A hash of the prompt: pairs that share one belong together."""
        return _hash([*map(dict, self.prompt), *({"tool": tool} for tool in self.tools)])

    @property
    def digest(self) -> bytes:
        """A hash of all that the pair says."""
        said = [[dict(turn) for turn in self.prompt], self.chosen, self.rejected, self.tie]
        return _hash([*said, self.tools] if self.tools else said)


def _hash(said: Any) -> bytes:
    return hashlib.blake2b(json.dumps(said, sort_keys=True, default=str).encode(), digest_size=16).digest()


# ---------------------------------------------------------------- reading


def read(source: str) -> list[Pair]:
    """Read pairs: JSON lines, an array of JSON, a directory of them, or "builtin:NAME".

    Columns are those of TRL: ``prompt``, ``chosen`` and ``rejected`` as strings; the same as lists of turns; or whole
    chats in ``chosen`` and ``rejected`` that begin alike. Ties have ``tie``: true, in a column that all rows have.
    Built in are "builtin:preferences" (`synthetic`) and, of the right and wrong answers of a set of
    `lowdim.data.questions.CALIBRATION_SETS`, such as "builtin:arc_easy", what `from_questions` makes.

    Raises:
        DataError: a row is not of this form, its answers are equal, or only some say whether they are ties; the
            message names file and line.
    """
    kind, _, name = source.partition(":")
    if kind == "builtin":
        return builtin(name)
    path = Path(source).expanduser()
    files = text.below(path, records=True) if path.is_dir() else [path]
    found = [from_record(record, where) for file in files for where, record in text.records(file)]
    if not found:
        raise DataError(f"{source} holds no pairs")
    check_all_say(found)
    return found


def builtin(name: str) -> list[Pair]:
    """Return a built-in set of pairs.

    Raises:
        DataError: there is none of this name.
    """
    if name == SYNTHETIC:
        return synthetic()
    known = [SYNTHETIC, *(each for each in questions.CALIBRATION_SETS if not each.endswith("_test"))]
    if name not in known:
        raise DataError(f"unknown built-in set of pairs {name!r}. {suggest(name, known)}")
    return from_questions(questions.builtin(questions.CALIBRATION_SETS[name]))


def from_record(record: Mapping[str, Any], where: str) -> Pair:
    """Make a pair of one JSON object; fields that are not a pair's are ignored.

    Raises:
        DataError: see `read`.

    Example:
        >>> pair = from_record({"prompt": "2 + 2?", "chosen": "4", "rejected": "5", "tie": False}, "line 1")
        >>> pair.prompt, pair.tie
        (({'role': 'user', 'content': '2 + 2?'},), False)
    """
    chosen, rejected = (record.get(key) for key in ("chosen", "rejected"))
    prompt = record.get("prompt")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if not isinstance(prompt, str) or not prompt.strip():
            raise DataError(
                f"{where}: 'chosen' and 'rejected' are answers, and 'prompt' is missing: what they answer to"
            )
        turns: Sequence[Mapping[str, Any]] = ({"role": "user", "content": prompt},)
    elif isinstance(chosen, list) and isinstance(rejected, list):
        turns, chosen, rejected = _conversation(prompt, chosen, rejected, where)
    else:
        have = ", ".join(map(repr, record)) or "nothing"
        raise DataError(
            f"{where}: a pair has 'prompt', 'chosen' and 'rejected', all strings or all lists of turns; found {have}"
        )
    if not (chosen.strip() and rejected.strip()):
        raise DataError(f"{where}: an answer is blank. Leave the pair out")
    if chosen.strip() == rejected.strip():
        raise DataError(f"{where}: both answers are {chosen[:60]!r}, so that there is nothing to prefer. Leave it out")
    return Pair(tuple(turns), chosen, rejected, _tie(record, where), where, text.tools_of(record, where))


def _conversation(
    prompt: Any, chosen: list[Any], rejected: list[Any], where: str
) -> tuple[Sequence[Mapping[str, Any]], str, str]:
    """Return the turns before the answers, and both answers, of lists of turns."""
    sides = [text.turns(side, f"{where}: {name!r}") for name, side in (("chosen", chosen), ("rejected", rejected))]
    before: tuple[Mapping[str, Any], ...] = () if prompt is None else text.turns(prompt, f"{where}: 'prompt'")
    if prompt is None:
        both = itertools.takewhile(
            lambda turns: turns[0] == turns[1], zip(*(side[:-1] for side in sides), strict=False)
        )
        before = tuple(turn for turn, _ in both)
        sides = [side[len(before) :] for side in sides]
    for name, side in zip(("chosen", "rejected"), sides, strict=True):
        if len(side) != 1 or side[0]["role"] != "assistant" or not isinstance(side[0]["content"], str):
            raise DataError(f"{where}: {name!r} must be one turn of the assistant behind turns that both share")
    if not before:
        raise DataError(f"{where}: there is no turn before the answers. Give 'prompt', or whole chats")
    return before, str(sides[0][0]["content"]), str(sides[1][0]["content"])


def _tie(record: Mapping[str, Any], where: str) -> bool | None:
    """Return whether a row is a tie; None where it does not say, which one with equal scores has to."""
    tie = record.get("tie")
    if tie is not None and not isinstance(tie, bool):
        raise DataError(f"{where}: 'tie' must be true or false; got {tie!r}")
    scores = [record.get(key) for key in SCORES]
    if tie is None and None not in scores and scores[0] == scores[1]:
        raise DataError(
            f"{where}: both answers have the score {scores[0]}: is that a tie? The file does not say; {_TIES}"
        )
    return tie


def check_all_say(pairs: Sequence[Pair]) -> None:
    """Refuse pairs of which only some say whether they are ties.

    Raises:
        DataError: names one that does not.
    """
    silent = [pair for pair in pairs if pair.tie is None]
    if silent and len(silent) < len(pairs):
        raise DataError(f"{silent[0].where} has no 'tie', and other pairs have: {_TIES}")


def check_ties(pairs: Sequence[Pair], source: str) -> None:
    """Refuse pairs that do not say whether they are ties.

    Raises:
        DataError: says what to write.
    """
    if any(pair.tie is None for pair in pairs):
        raise DataError(f"{source} has no field 'tie', and this objective learns from ties: {_TIES}")


def split(pairs: Sequence[Pair], share: float) -> tuple[list[Pair], list[Pair]]:
    """Return the pairs to train on and those held out: a share of the prompts, those with the smallest hashes.

    Raises:
        DataError: there is one prompt alone.
    """
    keys = sorted({pair.key for pair in pairs})
    if len(keys) < 2:
        raise DataError("all pairs have one prompt, so that none is left to validate on; name other pairs for that")
    held = set(keys[: min(len(keys) - 1, max(1, round(share * len(keys))))])
    return [p for p in pairs if p.key not in held], [p for p in pairs if p.key in held]


# ---------------------------------------------------------------- making


def from_questions(asked: Iterable[Question], ties: float = 0.2, seed: int = 0) -> list[Pair]:
    r"""Return a pair for every question: its right answer over a wrong one, or, as a tie, two wrong ones.

    Args:
        asked: multiple-choice questions; those of two choices make no ties.
        ties: share of the pairs that are ties.
        seed: of what is drawn.

    Example:
        >>> q = Question(("Question: Sky is?\nAnswer:",) * 3, (" red", " blue", " green"), label=1)
        >>> [pair.chosen for pair in from_questions([q] * 3, ties=0.0)]
        ['blue', 'blue', 'blue']
    """
    source, found, owed = random.Random(seed), list[Pair](), 0.0
    for number, question in enumerate(asked):
        prompt = ({"role": "user", "content": questions.bare(question.contexts[question.label])},)
        wrong = [choice for index, choice in enumerate(question.choices) if index != question.label]
        wrong = [choice for choice in dict.fromkeys(wrong) if choice != question.choices[question.label]]
        owed += ties
        if owed >= 1 and len(wrong) > 1:
            one, other = source.sample(wrong, 2)
            owed -= 1
            found.append(Pair(prompt, one, other, True, f"question {number + 1}"))
        elif wrong:
            right = question.choices[question.label]
            found.append(Pair(prompt, right, source.choice(wrong), False, f"question {number + 1}"))
    return found


_WORDS = (
    "awful dreadful poor weak dull plain fair decent good fine great lovely superb perfect".split()  # noqa: SIM905
)
_THINGS = "soup film hotel garden song novel chair market lecture bridge painting holiday".split()  # noqa: SIM905
_PLACES = "here nearby downtown abroad outside".split()  # noqa: SIM905


def utility(answer: str) -> float:
    """Return how good a made-up answer is: the mean of its words' places in a list from awful to perfect, -1 to 1.

    Example:
        >>> round(utility("It was awful and good."), 2), utility("It was perfect and perfect.")
        (-0.38, 1.0)
    """
    found = [_WORDS.index(word) for word in answer.replace(".", "").split() if word in _WORDS]
    return 2 * sum(found) / len(found) / (len(_WORDS) - 1) - 1


def synthetic(count: int = 2000, ties: float = 0.2, seed: int = 0) -> list[Pair]:
    """Return made-up pairs with known utilities (`utility`): of two answers the better one is preferred.

    Exactly the share ``ties`` is ties: the pairs whose utilities are closest. Of a tie either answer comes first, by
    chance. Other pairs of equal utilities get another second answer.

    Example:
        >>> pairs = synthetic(200)
        >>> sum(pair.tie for pair in pairs), all(utility(p.chosen) > utility(p.rejected) for p in pairs if not p.tie)
        (40, True)
    """
    source = random.Random(seed)
    drawn = []
    for number in range(count):
        thing, place = source.choice(_THINGS), source.choice(_PLACES)
        prompt = {"role": "user", "content": f"How was the {thing} {place}, number {number}?"}
        one, other = (f"It was {source.choice(_WORDS)} and {source.choice(_WORDS)}." for _ in range(2))
        while one == other:
            other = f"It was {source.choice(_WORDS)} and {source.choice(_WORDS)}."
        drawn.append(((prompt,), one, other))
    apart = [abs(utility(one) - utility(other)) for _, one, other in drawn]
    order = sorted(range(count), key=lambda index: (apart[index], index))
    tied = set(order[: round(ties * count)])
    for index in (index for index in order if not apart[index] and index not in tied):
        asked, one, other = drawn[index]
        while utility(one) == utility(other):
            other = f"It was {source.choice(_WORDS)} and {source.choice(_WORDS)}."
        drawn[index] = (asked, one, other)
    return [_made(index, *pair, index in tied) for index, pair in enumerate(drawn)]


def _made(index: int, prompt: tuple[Mapping[str, Any], ...], one: str, other: str, tie: bool) -> Pair:
    swap = not tie and utility(one) < utility(other)
    return Pair(prompt, *((other, one) if swap else (one, other)), tie, f"pair {index + 1}")


def records(pairs: Iterable[Pair]) -> Iterator[dict[str, Any]]:
    """Yield pairs as rows of a file that `read` and TRL take."""
    for pair in pairs:
        answers = {
            key: [{"role": "assistant", "content": answer}]
            for key, answer in (("chosen", pair.chosen), ("rejected", pair.rejected))
        }
        tools = {"tools": list(pair.tools)} if pair.tools else {}
        yield {"prompt": [dict(turn) for turn in pair.prompt], **answers, "tie": bool(pair.tie), **tools}
