"""Pairs as tokens, and the batches of them."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lowdim.data import tokens
from lowdim.data.corpus import cache, chat, preferences
from lowdim.data.corpus.preferences import Pair
from lowdim.data.errors import DataError
from lowdim.train.pretrain.sequences import IGNORED, Shuffled


class PairMicro(NamedTuple):
    """Pairs that are computed at once: the chosen answers in the first half of the rows, the rejected in the second.

    Attributes:
        ids: int64 ``[2 pairs, tokens]``; what is missing to the longest is filled up with 0.
        targets: the token after each, int64 of the same shape, -100 where it belongs to no answer.
        ties: whether neither is preferred, bool ``[pairs]``.
        reference: log-probabilities of the chosen and the rejected answer before training, fp32 ``[pairs, 2]``.
        counted: pairs.
        seed: of what the model draws meanwhile.
    """

    ids: Tensor
    targets: Tensor
    ties: Tensor
    reference: Tensor
    counted: int
    seed: int = 0


@dataclass(frozen=True)
class Encoded:
    """A pair as tokens: each side's ids, and where its answer begins."""

    sides: tuple[tuple[list[int], int], tuple[list[int], int]]
    tie: bool


class Pairs(Shuffled):
    """The pairs of one side of the data; collates them, ties among them.

    Args:
        rows: pairs as tokens.
        length: tokens of a sequence at most, without its last. Of a longer prompt the beginning is cut off, of both
            sides alike; a pair with a longer answer is passed over.

    Attributes:
        passed_over: how many were.
        reference: see `PairMicro`, fp32 ``[pairs, 2]``; zeros until somebody measures it.

    Raises:
        DataError: there is no pair left.

    Example:
        >>> pairs = Pairs([Encoded((([5, 6, 7], 2), ([5, 6, 8, 9], 2)), tie=True)], 8)
        >>> micro = pairs.micro([0])
        >>> micro.targets.tolist(), micro.ties.tolist()
        ([[-100, 7, -100], [-100, 8, 9]], [True])
    """

    def __init__(self, rows: Sequence[Encoded], length: int) -> None:
        super().__init__()
        fitting = [(row, cut) for row in rows if (cut := _cut(row, length)) is not None]
        self._rows, self.ties = [cut for _, cut in fitting], torch.tensor([row.tie for row, _ in fitting])
        self.passed_over = len(rows) - len(fitting)
        if not self._rows:
            raise DataError(f"no pair has both answers within length={length}. Give other pairs, or a larger length")
        self.reference = torch.zeros(len(self._rows), 2)

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self._rows)

    def tokens(self, row: int) -> int:
        """Return the tokens of the longer side of a pair."""
        return max(len(ids) for ids, _ in self._rows[row])

    def micro(self, rows: Sequence[int], seed: int = 0) -> PairMicro:
        """Return some pairs."""
        sides = [self._rows[row][side] for side in (0, 1) for row in rows]
        width = max(len(ids) for ids, _ in sides) - 1
        both = torch.zeros(len(sides), width, dtype=torch.int64)
        targets = torch.full_like(both, IGNORED)
        for at, (ids, first) in enumerate(sides):
            both[at, : len(ids) - 1] = torch.tensor(ids[:-1])
            targets[at, first - 1 : len(ids) - 1] = torch.tensor(ids[first:])
        index = torch.as_tensor(list(rows))
        return PairMicro(both, targets, self.ties[index], self.reference[index], len(index), seed)


def _cut(row: Encoded, length: int) -> list[tuple[list[int], int]] | None:
    """Return the sides of a pair within a length, with as much of the prompt for both; None if they cannot be."""
    room = length + 1 - max(len(ids) - first for ids, first in row.sides)
    if room < 1:
        return None
    starts = [max(0, first - room) for _, first in row.sides]
    return [(ids[start:], first - start) for (ids, first), start in zip(row.sides, starts, strict=True)]


def encode(tokenizer: Any, pairs: Sequence[Pair], advance: Callable[[int], None] = lambda _: None) -> list[Encoded]:
    """Return pairs as tokens; the last answer alone counts, with what ends it.

    Raises:
        DataError: there is no chat template, or the tokenizer makes one of both answers, or nothing of one.
    """
    found = []
    for pair in pairs:
        made = []
        for ids, counted in chat.encode(tokenizer, pair.documents(), last=True):
            if True not in counted[1:]:
                raise DataError(
                    f"{pair.where}: an answer has no token of its own behind the prompt. Leave the pair out"
                )
            stop = len(counted) - counted[::-1].index(True)
            made.append((ids[:stop], counted.index(True, 1)))
        if made[0] == made[1]:
            raise DataError(f"{pair.where}: both answers have the same tokens, so that there is nothing to prefer")
        found.append(Encoded((made[0], made[1]), bool(pair.tie)))
        advance(1)
    return found


def read(recipe: Any, tokenizer: Any, advance: Callable[[int], None]) -> tuple[Pairs, Pairs, dict[str, Any]]:
    """Return the pairs that a recipe trains on, those that it is judged by, and what is said of both.

    Raises:
        DataError: they cannot be read, or do not say which are ties to an objective that learns from these.
        RecipeError: the objective has no probability for ties.
    """
    data, rule = recipe.data, recipe.preference
    found = [pair for source in data.source for pair in preferences.read(source)]
    preferences.check_all_say(found)
    if isinstance(data.validation, str):
        own, held = found, preferences.read(data.validation)
        seen = {pair.key for pair in own}
        if both := [pair for pair in held if pair.key in seen]:
            raise DataError(
                f"{len(both)} prompts of {data.validation} are trained on too, first that of {both[0].where}"
            )
    else:
        own, held = preferences.split(found, data.validation)
    if rule.knows_ties:
        preferences.check_ties(found, ", ".join(data.source))
        preferences.check_ties(held, str(data.validation))
    ties, judged = (sum(bool(pair.tie) for pair in side) for side in (own, held))
    rule.check_ties(ties or judged)
    kept = [pair for pair in own if not (pair.tie and rule.drops_ties)]
    if len(kept) < len(own):
        warnings.warn(
            f"{ties:,} of {len(own):,} pairs are ties, which this objective has no place for: they are left out. "
            "Objective todo learns from them",
            stacklevel=4,
        )
    if not kept:
        raise DataError("all pairs are ties, which this objective leaves out. Take objective todo")
    text, judge = (Pairs(encode(tokenizer, side, advance), recipe.length) for side in (kept, held))
    if bool(judge.ties.all()):
        none = f"all {len(judge):,} pairs held out are ties"
        if rule.drops_ties:
            raise DataError(f"{none}, which this objective has no loss for. Hold out others, or take objective todo")
        warnings.warn(f"{none}: there is no accuracy, which is that of answers preferred to others", stacklevel=4)
    digest = hashlib.sha256(b"".join(pair.digest for pair in (*own, *held)) + cache.identify(tokenizer).encode())
    sides = {
        name: {"pairs": len(pairs), "ties": int(pairs.ties.sum()), "passed_over": pairs.passed_over}
        for name, pairs in (("train", text), ("validation", judge))
    }
    facts = {"kind": "preferences", "hash": digest.hexdigest()[:32], "vocabulary": tokens.describe(tokenizer)}
    return text, judge, {**facts, **sides, "dropped_ties": len(own) - len(kept)}
