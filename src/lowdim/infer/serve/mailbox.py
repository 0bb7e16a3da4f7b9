"""What the engine has made for one request and its client has not yet taken."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Update:
    """News of one sequence.

    Args:
        index: the sequence's number within its request.
        text: what has come to its text.
        tokens: how many tokens that took.
        finish: ``"stop"`` or ``"length"`` at its end.
    """

    index: int
    text: str
    tokens: int
    finish: str | None = None


class Mailbox:
    """Updates of one request, in the event loop's thread.

    News of a sequence that nobody has taken is joined with what came before: behind a slow reader lies at most
    the rest of its answer, one update for each sequence.

    Example:
        >>> async def read() -> list[Update]:
        ...     mailbox = Mailbox()
        ...     mailbox.put(Update(0, "a", 1))
        ...     mailbox.put(Update(0, "b", 1, "stop"))
        ...     return await mailbox.take()
        >>> asyncio.run(read())
        [Update(index=0, text='ab', tokens=2, finish='stop')]
    """

    def __init__(self) -> None:
        self._pending: dict[int, list[Update]] = {}
        self._error: Exception | None = None
        self._news = asyncio.Event()

    def put(self, update: Update) -> None:
        """Add an update."""
        self._pending.setdefault(update.index, []).append(update)
        self._news.set()

    def fail(self, error: Exception) -> None:
        """Make every later `take` raise an error, the first one given."""
        self._error = self._error or error
        self._news.set()

    async def take(self) -> list[Update]:
        """Wait for updates and return all there are, one for each sequence.

        Raises:
            Exception: the one given to `fail`.
        """
        await self._news.wait()
        if self._error is not None:
            raise self._error
        self._news.clear()
        pending, self._pending = self._pending, {}
        return [_join(updates) for updates in pending.values()]


def _join(updates: list[Update]) -> Update:
    text, tokens = "".join(update.text for update in updates), sum(update.tokens for update in updates)
    return Update(updates[0].index, text, tokens, updates[-1].finish)
