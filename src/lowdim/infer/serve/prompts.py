"""Requests' texts and conversations as token ids."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from jinja2 import TemplateError

from lowdim.infer.serve.errors import ApiError
from lowdim.infer.serve.schema import Message

T = TypeVar("T")


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
        return self._checked(await self._run(lambda: self._tokenizer(text)["input_ids"]), "prompt")

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
        turns = [message.turn() for message in messages]
        try:
            return self._checked(await self._run(lambda: self._templated(turns)), "messages")
        except TemplateError as error:
            raise ApiError(
                400, f"The model's chat template refuses these messages: {error}.", param="messages"
            ) from error

    def ids(self, ids: list[int]) -> list[int]:
        """Return token ids as they came, checked."""
        if ids and not 0 <= min(ids) <= max(ids) < self._vocab_size:
            raise ApiError(400, f"prompt: token ids lie between 0 and {self._vocab_size - 1}.", param="prompt")
        return self._checked(ids, "prompt")

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    def _templated(self, turns: list[dict[str, str]]) -> list[int]:
        text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    @staticmethod
    def _checked(ids: list[int], param: str) -> list[int]:
        if not ids:
            raise ApiError(400, f"{param}: there is not one token to begin from.", param=param)
        return ids
