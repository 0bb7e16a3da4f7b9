"""What one server takes on: each limit, its default and its bounds."""

from __future__ import annotations

from dataclasses import dataclass

from lowdim.core.errors import RecipeError


@dataclass(frozen=True)
class Limits:
    """What one server takes on at a time and from one request.

    Args:
        concurrent: sequences decoded together.
        queue: sequences that may wait for a slot; beyond them clients are sent away with 429.
        max_tokens: most tokens that a request may ask for; ``None`` leaves it to the context.
        context: most tokens of prompt and answer together; ``None`` is what the model can hold.
        timeout: seconds from a request's arrival to the last byte of its answer.
        choices: most sequences (prompts times ``n``) in one request.
        body: most bytes of a request's body.
        chunk: prompt tokens read between two steps of the running sequences. The same whatever the load, so
            that an answer does not depend on it.
        cache_memory: most bytes that the keys and values of all running sequences may take; ``None`` is no limit.
        grace: seconds that running requests are given when the server is told to stop.

    Raises:
        RecipeError: a limit is out of bounds.

    Example:
        >>> Limits(concurrent=2).capacity
        66
    """

    concurrent: int = 8
    queue: int = 64
    max_tokens: int | None = None
    context: int | None = None
    timeout: float = 600.0
    choices: int = 16
    body: int = 4 * 2**20
    chunk: int = 64
    cache_memory: int | None = None
    grace: float = 20.0

    def __post_init__(self) -> None:
        for name, flag, least in (
            ("concurrent", "--max-concurrent", 1),
            ("queue", "--queue", 0),
            ("max_tokens", "--max-tokens", 1),
            ("context", "--context", 2),
            ("choices", "choices", 1),
            ("body", "body", 1),
            ("chunk", "chunk", 1),
            ("cache_memory", "--cache-memory", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise RecipeError(f"{flag} must be at least {least}, got {value}.")
        if not 0 < self.timeout < float("inf"):
            raise RecipeError(f"--timeout must be a number of seconds above 0, got {self.timeout}.")
        if not 0 <= self.grace < float("inf"):
            raise RecipeError(f"grace must be a number of seconds, at least 0, got {self.grace}.")

    @property
    def capacity(self) -> int:
        """Sequences that are decoded or wait at any time."""
        return self.concurrent + self.queue
