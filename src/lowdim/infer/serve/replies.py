"""The JSON of answers, whole and in pieces, for both endpoints."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass
class Choice:
    """One answer as far as it has come: its text, its tokens, and why it ended."""

    text: str = ""
    tokens: int = 0
    finish: str | None = None


def usage(prompt: int, choices: Sequence[Choice]) -> dict[str, int]:
    """Count tokens.

    Example:
        >>> usage(3, [Choice(tokens=2), Choice(tokens=1)])
        {'prompt_tokens': 3, 'completion_tokens': 3, 'total_tokens': 6}
    """
    generated = sum(choice.tokens for choice in choices)
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


class Form(Protocol):
    """How an endpoint spells its answers."""

    prefix: str
    whole: str
    piece: str

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """Return a complete answer."""

    def opening(self, index: int) -> dict[str, Any] | None:
        """Return what a stream says of an answer before its text, if anything."""

    def delta(self, index: int, text: str, finish: str | None) -> dict[str, Any]:
        """Return a piece of an answer."""


class ChatForm:
    """Answers of ``/v1/chat/completions``."""

    prefix, whole, piece = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """Return a complete answer."""
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": choice.finish}

    def opening(self, index: int) -> dict[str, Any]:
        """Return the role, which comes before the text."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def delta(self, index: int, text: str, finish: str | None) -> dict[str, Any]:
        """Return a piece of an answer."""
        delta = {"content": text} if text else {}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}


class TextForm:
    """Answers of ``/v1/completions``."""

    prefix, whole, piece = "cmpl-", "text_completion", "text_completion"

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """Return a complete answer."""
        return self.delta(index, choice.text, choice.finish)

    def opening(self, index: int) -> None:
        """Return nothing: a text has no head."""

    def delta(self, index: int, text: str, finish: str | None) -> dict[str, Any]:
        """Return a piece of an answer."""
        return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}


@dataclass(frozen=True)
class Reply:
    """The envelope of one request's answers."""

    form: Form
    model: str
    with_usage: bool = False
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, prompt: int, choices: Sequence[Choice]) -> dict[str, Any]:
        """Return the body of a complete answer."""
        listed = [self.form.choice(index, choice) for index, choice in enumerate(choices)]
        return self._wrap(self.form.whole, listed) | {"usage": usage(prompt, choices)}

    def piece(self, choice: dict[str, Any]) -> dict[str, Any]:
        """Return one piece of a stream."""
        return self._wrap(self.form.piece, [choice]) | ({"usage": None} if self.with_usage else {})

    def counts(self, prompt: int, choices: Sequence[Choice]) -> dict[str, Any]:
        """Return the last piece of a stream that was asked for its token counts."""
        return self._wrap(self.form.piece, []) | {"usage": usage(prompt, choices)}

    def _wrap(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        name = self.form.prefix + self.name
        return {"id": name, "object": kind, "created": self.created, "model": self.model, "choices": choices}
