"""Requests' texts and conversations as token ids."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lowdim.core.errors import RecipeError
from lowdim.infer.decode.prompt import encode_chat, encode_text
from lowdim.infer.serve.errors import ApiError
from lowdim.infer.serve.schema import Message


class Prompts:
    """A tokenizer on a thread of its own, so that a long prompt does not hold up other requests.

    Args:
        tokenizer: a Hugging Face tokenizer. It is used from one thread at a time: its setters are not safe.
        vocab_size: token ids must lie below this.
    """

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lowdim-tokenizer")
        tokenizer("a")  # sets what a tokenizer sets in its first call, before other threads decode with it

    async def text(self, text: str) -> list[int]:
        """Return the ids of a text, with the special tokens that the tokenizer puts before it."""
        return await self._encoded(encode_text, text, "prompt")

    async def chat(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of a conversation in the form of the model's chat template.

        Raises:
            ApiError: the model has no chat template, or it does not allow this conversation.
        """
        if not getattr(self._tokenizer, "chat_template", None):
            raise ApiError(
                400,
                "This model has no chat template. Send plain text to /v1/completions instead.",
                param="messages",
                code="no_chat_template",
            )
        return await self._encoded(encode_chat, [message.turn() for message in messages], "messages")

    def ids(self, ids: list[int], param: str = "prompt") -> list[int]:
        """Return token ids as they came, checked."""
        if not ids:
            raise ApiError(400, f"{param}: there is not one token to begin from.", param=param)
        if not 0 <= min(ids) <= max(ids) < self._vocab_size:
            raise ApiError(400, f"{param}: token ids lie between 0 and {self._vocab_size - 1}.", param=param)
        return ids

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    async def _encoded(self, encode: Callable[[Any, Any], list[int]], given: Any, param: str) -> list[int]:
        loop = asyncio.get_running_loop()
        try:
            return self.ids(await loop.run_in_executor(self._thread, encode, self._tokenizer, given), param)
        except RecipeError as error:
            raise ApiError(400, f"{param}: {error}", param=param) from error
