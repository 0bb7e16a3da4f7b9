"""How often a target model accepts what a draft model proposes, and what speculative decoding gains by it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers import PreTrainedModel

from lowdim.core.random import generator
from lowdim.data.batch import Batch
from lowdim.evaluate.errors import EvaluationError
from lowdim.models.walk.inputs import model_inputs
from lowdim.models.walk.logits import linear_head, without_head
from lowdim.nn.blocks import evaluating

CHUNK = 128

Probabilities = Callable[[Sequence[Sequence[int]], int], Tensor]
"""(rows of token ids, n) -> what follows each of the last n tokens of each row, fp32 ``[rows, n, V]``."""


def overlap(target: Tensor, draft: Tensor) -> Tensor:
    """Return how likely a token drawn from the draft is accepted, sum_v min(p_v, q_v), ``[...]``.

    Paper: "Fast Inference from Transformers via Speculative Decoding", 2023, arXiv 2211.17192.

    Args:
        target: p, probabilities ``[..., V]``.
        draft: q, over the same words or the first of them.

    Example:
        >>> overlap(torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1]))
        tensor(0.6000)
    """
    return torch.minimum(target[..., : draft.shape[-1]], draft).sum(-1)


class Reader:
    """A causal language model, asked for the distributions of next tokens; it is in evaluation mode meanwhile.

    Args:
        model: one of Transformers; no state is kept between calls, so that every architecture will do. A token that it
            has no embedding of is read as its last one.
        words: the distributions are over the first so many words alone, and sum to 1 there; None takes all.
    """

    def __init__(self, model: PreTrainedModel, words: int | None = None) -> None:
        self.model, self._head, self._words = model, linear_head(model), words
        table: Any = model.get_input_embeddings()
        self._last = int(table.weight.shape[0]) - 1

    @torch.no_grad()
    def states(self, ids: Tensor) -> Tensor:
        """Return, for token ids ``[B, T]``, what `said` takes, ``[B, T, ...]``."""
        inputs = model_inputs(self.model, Batch(ids.clamp(max=self._last)), next(self.model.parameters()).device)
        with evaluating(self.model):
            if self._head is None:
                return self.model(**inputs).logits  # type: ignore[no-any-return]
            with without_head(self._head):
                return self.model(**inputs).logits  # type: ignore[no-any-return]

    @torch.no_grad()
    def said(self, states: Tensor) -> Tensor:
        """Return the probabilities of what follows some tokens, fp32 ``[n, V]``, from their states ``[n, ...]``."""
        head = self._head
        logits = states if head is None else linear(states.to(head.weight.dtype), head.weight, head.bias)
        return logits[..., : self._words].float().softmax(-1)

    def __call__(self, rows: Sequence[Sequence[int]], last: int) -> Tensor:
        """Return what follows each of the last so many tokens of each row, ``[rows, last, V]``; see `Probabilities`.

        Rows are filled up on the right, which no token before sees.
        """
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
        ends = torch.tensor([len(row) for row in rows])[:, None] + torch.arange(-last, 0)
        states = self.states(ids)
        wanted = states[torch.arange(len(rows), device=states.device)[:, None], ends.to(states.device)]
        return self.said(wanted.flatten(0, 1)).view(len(rows), last, -1)


@dataclass(frozen=True)
class Expected:
    """How likely a draft's tokens are accepted on text that is given.

    Attributes:
        acceptance: the mean of `overlap` over the tokens that count.
        agreement: share of them at which both models find the same token likeliest: acceptance of greedy decoding.
        tokens: how many count.
    """

    acceptance: float
    agreement: float
    tokens: int


def expected(target: Reader, draft: Reader, batches: Iterable[tuple[Tensor, Tensor]]) -> Expected:
    """Measure the acceptance of a draft on text, without drawing anything.

    Args:
        target: of the draft.
        draft: the model that proposes.
        batches: token ids int64 ``[B, T]``, and bool ``[B, T]``: whether what follows a token counts.

    Raises:
        EvaluationError: nothing counts.
    """
    accepted, agreed, count = 0.0, 0, 0
    for ids, counted in batches:
        one, other = (each.states(ids)[counted] for each in (target, draft))
        for begin in range(0, len(one), CHUNK):
            p, q = target.said(one[begin : begin + CHUNK]), draft.said(other[begin : begin + CHUNK].to(one.device))
            accepted += float(overlap(p, q).double().sum())
            agreed += int((p.argmax(-1) == q.argmax(-1)).sum())
        count += len(one)
    if not count:
        raise EvaluationError("the text has no token that counts, so that acceptance has no mean; give more text")
    return Expected(accepted / count, agreed / count, count)


def block_efficiency(acceptance: float, drafted: int) -> float:
    """Return the tokens that a call of the target gives on average, (1 - a^(k + 1)) / (1 - a), every token alike.

    Args:
        acceptance: a, how likely each drafted token is accepted.
        drafted: k, tokens that the draft proposes before each call.

    Example:
        >>> round(block_efficiency(0.8, 4), 4), block_efficiency(1.0, 4), block_efficiency(0.0, 4)
        (3.3616, 5.0, 1.0)
    """
    return float(sum(acceptance**place for place in range(drafted + 1)))


@dataclass(frozen=True)
class Speculation:
    """What a simulated speculative decoding did.

    Attributes:
        proposed: drafted tokens that were verified: those accepted, and the first of a block that was not.
        accepted: of them.
        calls: of the target, one for each row and block.
        tokens: written, those the target adds itself among them.
        rows: the tokens that follow each prompt.
    """

    proposed: int
    accepted: int
    calls: int
    tokens: int
    rows: tuple[tuple[int, ...], ...]

    @property
    def acceptance(self) -> float:
        """Share of the verified tokens that was accepted."""
        return self.accepted / max(1, self.proposed)

    @property
    def efficiency(self) -> float:
        """Tokens for each call of the target."""
        return self.tokens / max(1, self.calls)


def speculate(
    target: Probabilities, draft: Probabilities, prompts: Sequence[Sequence[int]], tokens: int, drafted: int, seed: int
) -> Speculation:
    """Write text by speculative decoding at temperature 1, verified by rejection sampling, and count.

    The draft proposes k tokens, each drawn from its q. The target accepts them from the left, each with probability
    min(1, p / q); in the place of the first that it refuses it draws from max(0, p - q), made to sum to 1, and after k
    accepted ones it draws one more from p. What is written is distributed as the target's own text. A block that is
    begun is finished, so that a row may have up to k tokens more than asked for.

    Papers: "Fast Inference from Transformers via Speculative Decoding", 2023, arXiv 2211.17192; "Accelerating Large
    Language Model Decoding with Speculative Sampling", 2023, arXiv 2302.01318.

    Args:
        target: p of the next tokens.
        draft: q of the next tokens, over the target's words or the first of them.
        prompts: token ids, at least one each.
        tokens: how many to write after each prompt, at least.
        drafted: k.
        seed: of all draws.

    Raises:
        EvaluationError: there is no prompt, or one without tokens.

    Example:
        >>> def even(rows, last):
        ...     return torch.full((len(rows), last, 4), 0.25)
        >>> done = speculate(even, even, [[0]], tokens=8, drafted=3, seed=0)
        >>> done.acceptance, done.efficiency
        (1.0, 4.0)
    """
    if not prompts or not all(map(len, prompts)):
        raise EvaluationError("speculation goes on from prompts of at least one token each; give some")
    source = generator(seed, "evaluate", "speculate")
    rows, made = [list(prompt) for prompt in prompts], [list[int]() for _ in prompts]
    proposed = accepted = calls = 0
    while open_rows := [index for index, new in enumerate(made) if len(new) < tokens]:
        texts = [rows[index] for index in open_rows]
        words, drawn = _proposals(draft, texts, drafted, source)
        said = target([text + new for text, new in zip(texts, words, strict=True)], drafted + 1)
        for place, index in enumerate(open_rows):
            kept = _verify(said[place], drawn[place], words[place], source)
            accepted += len(kept) - 1
            proposed += min(len(kept), drafted)
            calls += 1
            rows[index] += kept
            made[index] += kept
    return Speculation(proposed, accepted, calls, sum(map(len, made)), tuple(map(tuple, made)))


def _proposals(
    draft: Probabilities, texts: Sequence[Sequence[int]], count: int, source: torch.Generator
) -> tuple[list[list[int]], Tensor]:
    """Return the tokens that the draft draws after each text, and the distributions that it drew them from."""
    words, said = [list[int]() for _ in texts], list[Tensor]()
    for _ in range(count):
        next_ = draft([[*text, *new] for text, new in zip(texts, words, strict=True)], 1)[:, 0].float().cpu()
        for new, token in zip(words, torch.multinomial(next_, 1, generator=source)[:, 0].tolist(), strict=True):
            new.append(token)
        said.append(next_)
    return words, torch.stack(said, 1)


def _verify(target: Tensor, draft: Tensor, words: Sequence[int], source: torch.Generator) -> list[int]:
    """Return what is written of one block: the accepted tokens and one of the target's own."""
    target = target.float().cpu()
    for place, word in enumerate(words):
        if float(torch.rand((), generator=source)) >= float(target[place, word] / draft[place, word]):
            left = target[place].clone()
            left[: draft.shape[-1]] -= draft[place]
            left.clamp_(min=0)
            left = left if float(left.sum()) > 0 else target[place]  # p and q are one but for rounding
            return [*words[:place], int(torch.multinomial(left, 1, generator=source))]
    return [*words, int(torch.multinomial(target[len(words)], 1, generator=source))]
