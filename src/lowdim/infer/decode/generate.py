"""One text, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from lowdim.infer.decode.backend import Backend
from lowdim.infer.decode.open import open_backend
from lowdim.infer.decode.sampling import Sampler, Sampling
from lowdim.infer.decode.text import TextStream

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Piece:
    """One generated token.

    Attributes:
        token: its number.
        text: the text that it made certain, often but not always its own; may be empty.
        finish_reason: of the last piece: "stop" (an end token or a stop string) or "length".
    """

    token: int
    text: str
    finish_reason: str | None = None


def generate(
    model: PreTrainedModel | Backend, tokenizer: Any, prompt_ids: Sequence[int], sampling: Sampling
) -> Iterator[Piece]:
    """Continue a prompt.

    Args:
        model: a causal LM, or a backend with a free slot.
        tokenizer: the model's.
        prompt_ids: tokens of the prompt, with whatever begins a text for this model.
        sampling: how tokens are chosen and when to end.

    Yields:
        one piece per token, as soon as it is there. The end token makes a piece too, without text of its own.

    Raises:
        LowdimError: the prompt is empty or too long, or all slots are taken.
    """
    backend = open_backend(model).backend if isinstance(model, nn.Module) else model
    slot = backend.open()
    try:
        yield from _run(backend, slot, tokenizer, list(prompt_ids), sampling)
    finally:
        backend.close(slot)


def _run(backend: Backend, slot: int, tokenizer: Any, history: list[int], sampling: Sampling) -> Iterator[Piece]:
    sampler, stream = Sampler(sampling), TextStream(tokenizer, sampling.stop, prompt=history)
    logits = backend.prefill(slot, history)
    for count in range(1, sampling.max_tokens + 1):
        token = sampler.pick(logits, history)
        history.append(token)
        ended = token in backend.eos_ids
        text = "" if ended else stream.push(token)
        if ended or stream.stopped:
            yield Piece(token, text + stream.finish(), "stop")
            return
        if count == sampling.max_tokens or backend.length(slot) == backend.max_length:
            text += stream.finish()
            yield Piece(token, text, "stop" if stream.stopped else "length")
            return
        yield Piece(token, text)
        logits = backend.step([slot], [token])[0]
