"""Whole models at work: seconds of a prompt's prefill and of every generated token."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel

from lowdim.infer.bench.result import Contestant
from lowdim.infer.bench.timing import Deadline
from lowdim.infer.decode.backend import longest
from lowdim.infer.decode.open import open_backend

ROUNDS = 3
MEMORY = 1024  # tokens that a timed sequence may hold
START, WARM_UP = 16, 2  # tokens before the first that is timed; tokens of a turn that is not
FEWEST = 4  # tokens of a turn, however slow they come


class Decoder(Protocol):
    """A model that can be timed.

    Attributes:
        backend: what drives the steps.
        reason: why it is not the native engine; empty where it is, or where that was never meant.
    """

    backend: str
    reason: str

    def prefill(self, ids: Sequence[int]) -> float:
        """Return the seconds until the logits after a prompt are there."""

    def decode(self, ids: Sequence[int], tokens: int) -> list[float]:
        """Return the seconds of each of some tokens generated greedily after a prompt."""


class TorchDecoder:
    """Hugging Face ``generate``, as most users run it; the model's own settings of it, such as beams, are put aside."""

    backend, reason = "generate", ""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        model.generation_config = GenerationConfig()
        last = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._kept = {"logits_to_keep": 1} if last else {}

    @torch.inference_mode()
    def prefill(self, ids: Sequence[int]) -> float:
        """Time one forward over the prompt, logits of its last token only where the model can."""
        prompt = torch.tensor([ids])
        begun = time.perf_counter()
        self.model(prompt, use_cache=True, **self._kept)
        return time.perf_counter() - begun

    @torch.inference_mode()
    def decode(self, ids: Sequence[int], tokens: int) -> list[float]:
        """Time the gaps between the tokens that ``generate`` hands to a streamer."""
        clock = _Clock()
        prompt = torch.tensor([ids])
        model: Any = self.model
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=tokens + 1,
            min_new_tokens=tokens + 1,
            do_sample=False,
            pad_token_id=0,
            streamer=clock,
        )
        return clock.gaps()


class _Clock:
    """A streamer that notes when it was given something: first the prompt, then token by token."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self._times.append(time.perf_counter())

    def end(self) -> None: ...

    def gaps(self) -> list[float]:
        """Return the seconds between one token and the next."""
        generated = self._times[1:]
        return [after - before for before, after in pairwise(generated)]


class LowdimDecoder:
    """This runtime, with a cache of `lowdim.infer.decode.backend.CACHES`."""

    def __init__(self, model: PreTrainedModel, cache: str = "auto", memory: int = MEMORY) -> None:
        engine = open_backend(model, max_length=min(longest(model.config), memory), cache=cache)
        self._backend, self.backend, self.reason = engine.backend, engine.name, engine.reason

    def prefill(self, ids: Sequence[int]) -> float:
        """Time a prompt."""
        slot = self._backend.open()
        begun = time.perf_counter()
        self._backend.prefill(slot, ids)
        seconds = time.perf_counter() - begun
        self._backend.close(slot)
        return seconds

    def decode(self, ids: Sequence[int], tokens: int) -> list[float]:
        """Time greedy steps, the choice of the token included."""
        slot = self._backend.open()
        token = int(np.argmax(self._backend.prefill(slot, ids)))
        seconds = []
        for _ in range(tokens):
            begun = time.perf_counter()
            token = int(np.argmax(self._backend.step([slot], [token])[0]))
            seconds.append(time.perf_counter() - begun)
        self._backend.close(slot)
        return seconds


def time_steps(
    decoders: Mapping[Contestant, Decoder],
    tokens: int,
    vocab: int,
    rounds: int = ROUNDS,
    advance: Callable[[], None] = lambda: None,
    seconds: float = math.inf,
) -> dict[Contestant, list[float]]:
    """Return each contestant's seconds per token, measured A B C A B C ...

    Args:
        decoders: the contestants.
        tokens: generated per turn.
        vocab: token ids there are.
        rounds: turns of each, after a short one that warms up.
        advance: called after every turn.
        seconds: that all this may take: the turns are made shorter, and but for the first may be left out.
    """
    deadline, prompt = Deadline(seconds), tokens_of(START, vocab)
    times: dict[Contestant, list[float]] = {who: [] for who in decoders}
    slowness = 0.0  # seconds in which each contestant makes one token
    for decoder in decoders.values():
        slowness += min(decoder.decode(prompt, WARM_UP))
        advance()
    tokens = max(min(tokens, FEWEST), int(min(tokens, deadline.left() / (rounds * max(slowness, 1e-9)))))
    for turn in range(rounds):
        if turn and not deadline.left():
            break
        for who, decoder in decoders.items():
            times[who] += decoder.decode(prompt, tokens)
            advance()
    return times


def time_prefill(
    decoders: Mapping[Contestant, Decoder],
    prompt: int,
    vocab: int,
    rounds: int = ROUNDS,
    advance: Callable[[], None] = lambda: None,
    seconds: float = math.inf,
) -> dict[Contestant, list[float]]:
    """Return each contestant's seconds for a prompt; arguments as in `time_steps`.

    No turn is spent on warming up: prompts are long, and the median of three leaves the slowest out.
    """
    deadline, ids = Deadline(seconds), tokens_of(prompt, vocab)
    times: dict[Contestant, list[float]] = {who: [] for who in decoders}
    for turn in range(rounds):
        if turn and not deadline.left():
            break
        for who, decoder in decoders.items():
            times[who].append(decoder.prefill(ids))
            advance()
    return times


def tokens_of(count: int, vocab: int) -> list[int]:
    """Return some token ids, none of them the first, which is often a special one.

    Example:
        >>> tokens_of(3, 10)
        [1, 8, 6]
    """
    return [1 + 7 * index % (vocab - 1) for index in range(count)]
