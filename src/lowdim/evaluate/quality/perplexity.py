"""Perplexity with its protocol: how surprised a model is by a text, and how that was measured."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowdim.data.batch import Batch, split
from lowdim.data.errors import DataError
from lowdim.data.tokens import Bos
from lowdim.data.windows import Windows, windows
from lowdim.evaluate.errors import EvaluationError
from lowdim.evaluate.quality.difference import Difference, difference
from lowdim.evaluate.quality.forward import Forward, as_forward
from lowdim.evaluate.quality.likelihood import token_nll


@dataclass(frozen=True, eq=False)
class Perplexity:
    """A perplexity, what it is made of and how it was measured.

    Attributes:
        value: the perplexity.
        nll: mean negative log-likelihood per token of each window, nats, fp64 ``[windows]``.
        protocol: text hash, context, windows, tokenizer, start-of-text policy, joint, dtype of the logits.
            Numbers of different protocols are not comparable.
    """

    value: float
    nll: Tensor
    protocol: dict[str, Any]


def perplexity(
    model: nn.Module | Forward,
    text: Windows | str | Path | Iterable[Any] = "builtin",
    tokenizer: Any = None,
    *,
    context: int = 2048,
    limit: int | None = None,
    join: str = "\n\n",
    bos: Bos = "tokenizer",
    tokens_per_batch: int = 2048,
) -> Perplexity:
    """Measure perplexity the way the pruning literature does on WikiText-2.

        exp(sum_w T m_w / (n T)),  m_w = -1 / (T - 1) sum_(t=2..T) log p(x_wt | x_w,<t)

    Args:
        model: a causal language model, or a `lowdim.evaluate.quality.forward.Forward`.
        text: n windows of T tokens, or what `lowdim.data.windows.windows` makes them from.
        tokenizer: the model's tokenizer; not needed for windows made before.
        context: T, tokens in a window.
        limit: keep at most so many windows, spread evenly over the text.
        join: what stands between documents.
        bos: where the start-of-text token goes.
        tokens_per_batch: positions in a forward pass; bounds memory, not the result.

    Raises:
        DataError: no tokenizer for a text, too short a text, a context beyond the model's positions.
        NumericalError: the model's logits hold NaN.
    """
    if not isinstance(text, Windows):
        if tokenizer is None:
            raise DataError("perplexity of a text needs the model's tokenizer; got tokenizer=None")
        text = windows(text, tokenizer, context, limit=limit, join=join, bos=bos)
    batches = list(split([Batch(text.input_ids)], tokens_per_batch))
    means: list[float] = []
    dtype = ""
    for batch, logits in zip(batches, as_forward(model)(batches), strict=True):
        means += (float(token_nll(z[:-1], y[1:]).double().mean()) for z, y in zip(logits, batch.input_ids, strict=True))
        dtype = str(logits.dtype).removeprefix("torch.")
    nll = torch.tensor(means, dtype=torch.float64)
    return Perplexity(_exp(float(nll.mean())), nll, text.protocol | {"dtype": dtype})


def paired(dense: Perplexity, sparse: Perplexity) -> Difference:
    """Return how much more the second model is surprised, nats per token, paired window by window.

    The exponential of the mean is the ratio of the two perplexities.

    Raises:
        EvaluationError: the protocols differ; the message names the fields.

    Example:
        >>> a = Perplexity(2.0, torch.tensor([0.5, 0.7]), {"context": 8})
        >>> b = Perplexity(3.0, torch.tensor([0.9, 1.3]), {"context": 8})
        >>> round(paired(a, b).mean, 4), round(paired(a, b).stderr, 4)
        (0.5, 0.1)
    """
    fields = sorted(dense.protocol.keys() | sparse.protocol.keys())
    apart = [field for field in fields if dense.protocol.get(field) != sparse.protocol.get(field)]
    if apart:
        pairs = (f"{f}: {dense.protocol.get(f)!r} and {sparse.protocol.get(f)!r}" for f in apart)
        raise EvaluationError(f"perplexities of different protocols cannot be compared; {'; '.join(pairs)}")
    return difference(dense.nll, sparse.nll)


def _exp(nats: float) -> float:
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf
