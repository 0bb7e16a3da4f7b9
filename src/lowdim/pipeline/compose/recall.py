"""What a model says of facts: which it knows, and what its own words were before they were meddled with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from lowdim.data import tokens
from lowdim.data.batch import Batch
from lowdim.data.facts.fact import Fact
from lowdim.evaluate.quality.forward import Forward, as_forward
from lowdim.evaluate.quality.likelihood import Likelihood, encode_pair, of_ids

Ids = tuple[list[int], list[int]]
WORDS = 3
"""Tokens of a model's own continuation that locality compares."""
_TOKENS = 1024  # positions in a forward


def known(model: nn.Module | Forward, tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """Tell of each prompt and continuation whether greedy decoding after the prompt gives the continuation.

    Args:
        model: a causal language model, or a `lowdim.evaluate.quality.forward.Forward`.
        tokenizer: its tokenizer.
        pairs: prompts and continuations, see `lowdim.data.facts.fact.Fact.pair`.
    """
    return same(model, tokenizer, [encode_pair(tokenizer, *pair) for pair in pairs])


def ids_of(tokenizer: Any, fact: Fact) -> Ids:
    """Return a fact as token ids."""
    return encode_pair(tokenizer, *fact.pair)


def same(model: nn.Module | Forward, tokenizer: Any, requests: Sequence[Ids]) -> list[bool]:
    """Tell of each context and continuation, as ids, whether greedy decoding gives the continuation."""
    return [found.greedy for found, _ in judged(model, tokenizer, requests)]


def judged(model: nn.Module | Forward, tokenizer: Any, requests: Sequence[Ids]) -> list[tuple[Likelihood, Ids]]:
    """Return how likely each continuation is, beside what was asked."""
    asked = [((before + after)[:-1], after) for before, after in requests]
    found = of_ids(model, asked, tokens.pad_id(tokenizer), tokens_per_batch=_TOKENS)
    return list(zip(found, requests, strict=True))


@torch.no_grad()
def own_words(model: nn.Module | Forward, tokenizer: Any, prompts: Sequence[str], count: int = WORDS) -> list[Ids]:
    """Return prompts as ids with what greedy decoding says after each: the first tokens of it."""
    forward, fill = as_forward(model), tokens.pad_id(tokenizer)
    found: list[Ids] = [(tokens.encode(tokenizer, prompt), []) for prompt in prompts]
    size = max((len(before) for before, _ in found), default=0) + count
    step = max(1, _TOKENS // max(1, size))
    groups = [found[start : start + step] for start in range(0, len(found), step)]
    for _ in range(count):
        rows = [[before + said for before, said in group] for group in groups]
        batches = [Batch(*tokens.pad(some, max(map(len, some)), "right", fill)) for some in rows]
        for group, some, logits in zip(groups, rows, forward(batches), strict=True):
            for (_, said), row, scores in zip(group, some, logits, strict=True):
                said.append(int(scores[len(row) - 1].argmax()))
    return found


def token_by_token(words: Sequence[Ids]) -> list[Ids]:
    """Return one request for each token of the continuations, given all before it: how far each still holds.

    Example:
        >>> token_by_token([([1, 2], [3, 4])])
        [([1, 2], [3]), ([1, 2, 3], [4])]
    """
    return [([*before, *said[:place]], [said[place]]) for before, said in words for place in range(len(said))]


def prompts_of(facts: Sequence[Fact]) -> list[str]:
    """Return the prompts that locality asks, each once."""
    return list(dict.fromkeys(prompt for fact in facts for prompt in fact.locality))


def share(answers: Sequence[bool]) -> float | None:
    """Return the share that is true; ``None`` where there is nothing.

    Example:
        >>> share([True, False]), share([])
        (0.5, None)
    """
    return sum(answers) / len(answers) if answers else None
