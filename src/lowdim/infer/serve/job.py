"""One sequence on its way through the engine."""

from __future__ import annotations

import time
from collections.abc import Sequence, Set
from typing import Any

import numpy as np

from lowdim.infer.decode.sampling import Sampler, Sampling
from lowdim.infer.decode.text import TextStream
from lowdim.infer.serve.mailbox import Mailbox, Update


class Job:
    """A prompt to continue. Once submitted, all but ``cancelled`` belongs to the engine's thread.

    Args:
        index: its number within the request.
        ids: the prompt's tokens, at least one.
        sampling: how tokens are drawn, and when to stop.
        tokenizer: turns tokens into text.
        mailbox: where news goes, in the event loop's thread.
        memory: bytes that its keys and values may come to take.

    Attributes:
        cancelled: set by the event loop; the engine drops the job at its next turn.
        slot: the backend's name for the sequence, once it has one.
        read: tokens of the prompt that the backend has.
        count: tokens drawn.
        since: when it arrived, later when its last token came, in seconds.
    """

    def __init__(
        self, index: int, ids: Sequence[int], sampling: Sampling, tokenizer: Any, mailbox: Mailbox, memory: int = 0
    ) -> None:
        self.index, self.ids, self.mailbox, self.memory = index, ids, mailbox, memory
        self.cancelled = False
        self.slot, self.read, self.count = -1, 0, 0
        self.since = time.perf_counter()
        self._tokens = list(ids)
        self._most = sampling.max_tokens
        self._sampler = Sampler(sampling)
        self._text = TextStream(tokenizer, sampling.stop, prompt=ids)

    @property
    def is_read(self) -> bool:
        """Whether the backend has the whole prompt."""
        return self.read == len(self.ids)

    @property
    def last(self) -> int:
        """The token that the backend is to be given next."""
        return self._tokens[-1]

    def extend(self, logits: np.ndarray, eos_ids: Set[int]) -> Update:
        """Draw the next token.

        Args:
            logits: float32 [vocab], after the last token.
            eos_ids: tokens that end a text.
        """
        token = self._sampler.pick(logits, self._tokens)
        self._tokens.append(token)
        self.count += 1
        text = "" if token in eos_ids else self._text.push(token)
        if token in eos_ids or self._text.stopped:
            return Update(self.index, text + self._text.finish(), 1, "stop")
        if self.count < self._most:
            return Update(self.index, text, 1)
        text += self._text.finish()
        return Update(self.index, text, 1, "stop" if self._text.stopped else "length")
