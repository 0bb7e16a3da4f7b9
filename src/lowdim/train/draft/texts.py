"""What drafts are measured on: sequences of each text or task, and prompts that writing goes on from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowdim.core.errors import RecipeError
from lowdim.data.windows import windows
from lowdim.evaluate.quality import tasks
from lowdim.evaluate.quality.likelihood import encode_pair
from lowdim.evaluate.quality.zeroshot import sample
from lowdim.train.draft.recipe import Drafting
from lowdim.train.pretrain.sequences import IGNORED, Sequences

HELD = "held"
_LOGITS = 1 << 24  # values of logits at once


@dataclass(frozen=True, eq=False)
class Sample:
    """Sequences of one text.

    Attributes:
        rows: token ids.
        counted: by row, whether what follows a token counts.
        prompts: beginnings that a simulation goes on from.
    """

    rows: tuple[tuple[int, ...], ...]
    counted: tuple[tuple[bool, ...], ...]
    prompts: tuple[tuple[int, ...], ...]

    def batches(self, words: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ids and what counts, padded on the right, as many rows at a time as memory allows."""
        longest = max(map(len, self.rows))
        step = max(1, _LOGITS // (words * longest))
        for begin in range(0, len(self.rows), step):
            rows, counted = self.rows[begin : begin + step], self.counted[begin : begin + step]
            width = max(map(len, rows))
            ids = [[*row, *[0] * (width - len(row))] for row in rows]
            marks = [[*row, *[False] * (width - len(row))] for row in counted]
            yield torch.tensor(ids), torch.tensor(marks)

    def digest(self) -> str:
        """Return a hash of all of it."""
        return hashlib.sha256(repr((self.rows, self.counted, self.prompts)).encode()).hexdigest()[:32]


def samples(recipe: Drafting, tokenizer: Any, held: Sequences, words: int) -> dict[str, Sample]:
    """Return what each text of a recipe gives, by its name.

    Raises:
        LowdimError: a text cannot be read, is too short, or has tokens that the draft does not know.
    """
    found: dict[str, Sample] = {}
    for name in recipe.acceptance.texts:
        found[name] = made = _sample(recipe, name, tokenizer, held)
        if (largest := max(max(row) for row in made.rows)) >= words:
            raise RecipeError(
                f"acceptance.texts: {name} has token {largest}, and the draft knows {words:,}. Leave it out."
            )
    return found


def _sample(recipe: Drafting, name: str, tokenizer: Any, held: Sequences) -> Sample:
    settings = recipe.acceptance
    if name == HELD:
        number = min(settings.sequences, len(held))
        micros = [held.micro([place * len(held) // number]) for place in range(number)]
        return _made(recipe, [(m.ids[0].tolist(), (m.targets[0] != IGNORED).tolist()) for m in micros])
    if name in tasks.TASKS:
        questions = sample(tasks.load(name), settings.sequences, recipe.seed, name)
        pairs = [encode_pair(tokenizer, q.contexts[q.label], q.continuations[q.label]) for q in questions]
        short = [(before, after[: recipe.length - 1]) for before, after in pairs]
        cut = [(before[len(after) - recipe.length :], after) for before, after in short]
        rows = [([*before, *after[:-1]], [False] * (len(before) - 1) + [True] * len(after)) for before, after in cut]
        return _made(recipe, rows)
    cut_ = windows(name, tokenizer, recipe.length + 1, limit=settings.sequences).input_ids.tolist()
    return _made(recipe, [(row[:-1], [True] * (len(row) - 1)) for row in cut_])


def _made(recipe: Drafting, rows: list[tuple[list[int], list[bool]]]) -> Sample:
    """Return a sample; a prompt ends where the tokens that count begin, or after so many tokens."""
    prompts = []
    for ids, counted in rows[: recipe.acceptance.prompts]:
        first = counted.index(True) + 1 if True in counted else len(ids)
        size = recipe.acceptance.prompt
        prompts.append(tuple(ids[:size] if first == 1 else ids[max(0, first - size) : first]))
    return Sample(tuple(tuple(ids) for ids, _ in rows), tuple(tuple(marks) for _, marks in rows), tuple(prompts))
