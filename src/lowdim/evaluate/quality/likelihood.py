"""Log-likelihoods of tokens and of continuations, in fp32 and in slices that keep memory small.

Tokenisation follows the Language Model Evaluation Harness: a pair is encoded whole and cut where the context
alone would end. Special tokens stand before the context alone, whatever the tokenizer puts behind a text; and where
the last token of the context would merge with the answer, the two are encoded apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowdim.core.errors import NumericalError
from lowdim.data import tokens
from lowdim.data.batch import Batch
from lowdim.data.errors import DataError
from lowdim.evaluate.quality.forward import Forward, as_forward

_SLICE = 1 << 24  # logits in fp32 at a time: 64 MB


@dataclass(frozen=True)
class Likelihood:
    """Log-likelihood of a continuation in nats, and whether greedy decoding would produce it."""

    value: float
    greedy: bool


@torch.no_grad()
def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the negative log-likelihood of each target token, in nats.

    n_i = log(sum_v exp(z_iv)) - z_i,y_i

    Args:
        logits: z, any floating dtype, ``[positions, vocabulary]``.
        targets: y, int64 ``[positions]``.

    Returns:
        fp32 ``[positions]``.

    Raises:
        NumericalError: a logit is NaN.

    Example:
        >>> token_nll(torch.zeros(1, 4), torch.tensor([2])).exp()
        tensor([4.])
    """
    step = max(1, _SLICE // logits.shape[-1])
    pieces = [
        torch.nn.functional.cross_entropy(z.float(), y, reduction="none")
        for z, y in zip(logits.split(step), targets.to(logits.device).split(step), strict=True)
    ]
    nll = torch.cat(pieces).cpu() if pieces else torch.zeros(0)
    if bool(nll.isnan().any()):
        raise NumericalError("the model's logits hold NaN: its weights are damaged, or its dtype overflows")
    return nll


def loglikelihood(
    model: nn.Module | Forward,
    tokenizer: Any,
    pairs: Sequence[tuple[str, str]],
    *,
    tokens_per_batch: int = 2048,
    max_length: int | None = None,
    bos: tokens.Bos = "tokenizer",
) -> list[Likelihood]:
    """Return the log-likelihood of each continuation given its context.

    Pairs that need the same forward pass, such as " yes" and " no" after one context, share it. Sequences are
    sorted by length, padded on the right and masked; batching changes no result beyond rounding.

    Args:
        model: a causal language model, or a `lowdim.evaluate.quality.forward.Forward`.
        tokenizer: its tokenizer.
        pairs: context and continuation; an empty context stands for the start-of-text token.
        tokens_per_batch: positions in a forward pass, padding included.
        max_length: longest sequence; longer contexts lose their beginning.
        bos: the special tokens before a context: the tokenizer's own, none, or with "window" the start-of-text
            token, which then stays where a context is cut.

    Raises:
        DataError: a continuation is empty or longer than ``max_length``.
    """
    asked = requests(tokenizer, pairs, max_length=max_length, bos=bos)
    return of_ids(model, asked, tokens.pad_id(tokenizer), tokens_per_batch=tokens_per_batch)


def requests(
    tokenizer: Any, pairs: Iterable[tuple[str, str]], *, max_length: int | None = None, bos: tokens.Bos = "tokenizer"
) -> list[tuple[tuple[int, ...], list[int]]]:
    """Return what `of_ids` takes, of contexts and continuations; arguments and errors as of `loglikelihood`."""
    tokens.check_bos(bos, tokenizer)
    kept = len(tokens.prefix(tokenizer, bos))
    return [_cut(*encode_pair(tokenizer, *pair, bos), max_length, kept) for pair in pairs]


def of_ids(
    model: nn.Module | Forward,
    requests: Sequence[tuple[Sequence[int], Sequence[int]]],
    pad: int = 0,
    *,
    tokens_per_batch: int = 2048,
) -> list[Likelihood]:
    """Return the log-likelihoods of continuations given as token ids; see `loglikelihood`.

    Args:
        model: a causal language model, or a `lowdim.evaluate.quality.forward.Forward`.
        requests: what the model is given, that is all tokens but the last, and the tokens that are judged.
        pad: id of the padding.
        tokens_per_batch: positions in a forward pass, padding included.
    """
    sharing: dict[tuple[int, ...], list[int]] = {}
    for i, (inputs, _) in enumerate(requests):
        sharing.setdefault(tuple(inputs), []).append(i)
    groups = list(_batched(sorted(sharing, key=lambda inputs: (-len(inputs), inputs)), tokens_per_batch))
    batches = [Batch(*tokens.pad(group, len(group[0]), "right", pad)) for group in groups]
    results: dict[int, Likelihood] = {}
    for group, logits in zip(groups, as_forward(model)(batches), strict=True):
        for inputs, row in zip(group, logits, strict=True):
            for i in sharing[inputs]:
                results[i] = _score(row[: len(inputs)], requests[i][1])
    return [results[i] for i in range(len(requests))]


def encode_pair(
    tokenizer: Any, context: str, continuation: str, bos: tokens.Bos = "tokenizer"
) -> tuple[list[int], list[int]]:
    """Return the token ids of context and continuation.

    Blanks at the end of the context are moved to the continuation. Both are encoded as one text, and what
    follows the tokens of the context alone is the continuation; where those tokens are not the beginning of the whole,
    the continuation is encoded by itself.

    Raises:
        DataError: the continuation has no token.
    """
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    if not stripped:
        before, after = _start(tokenizer), tokens.encode(tokenizer, continuation, "none")
    else:
        special, own = tokens.opened(tokenizer, stripped, bos)
        before = special + own
        whole = tokens.encode(tokenizer, stripped + continuation, "none")
        apart = whole[: len(own)] != own or len(whole) == len(own)
        after = tokens.encode(tokenizer, continuation, "none") if apart else whole[len(own) :]
    if not after:
        raise DataError(f"the continuation {continuation!r} has no token of its own after {context[-20:]!r}")
    return before, after


def _start(tokenizer: Any) -> list[int]:
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return [int(token)]
    raise DataError("an empty context needs a start-of-text token and this tokenizer has none")


def _cut(before: list[int], after: list[int], max_length: int | None, kept: int) -> tuple[tuple[int, ...], list[int]]:
    """Return a request no longer than asked for; the first ``kept`` tokens and the continuation stay."""
    if max_length is not None and len(after) + kept > max_length:
        raise DataError(f"a continuation has {len(after)} tokens, more than max_length={max_length}")
    whole = (before + after)[:-1]
    if max_length is not None and len(whole) > max_length:
        whole = whole[:kept] + whole[len(whole) - max_length + kept :]
    return tuple(whole), after


def _batched(rows: Sequence[tuple[int, ...]], most: int) -> Iterator[list[tuple[int, ...]]]:
    group: list[tuple[int, ...]] = []
    for row in rows:
        if group and (len(group) + 1) * len(group[0]) > most:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _score(logits: Tensor, continuation: Sequence[int]) -> Likelihood:
    targets = torch.tensor(list(continuation))
    last = logits[-len(continuation) :]
    greedy = bool((last.argmax(-1).cpu() == targets).all())
    return Likelihood(-float(token_nll(last, targets).double().sum()), greedy)
