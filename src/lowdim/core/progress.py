"""How library code reports progress without knowing of terminals: a protocol, and silence."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Stage(Protocol):
    """One stage of the work, under way."""

    def advance(self, amount: int = 1) -> None:
        """Report that ``amount`` more units are done."""


class Progress(Protocol):
    """What a long call reports to."""

    def stage(self, name: str, total: int, unit: str = "") -> AbstractContextManager[Stage]:
        """Return a stage of ``total`` units, such as 30 "blocks"; it lasts from entering to leaving it."""


class Silent:
    """The default: says nothing.

    Example:
        >>> with Silent().stage("prune", 30, "blocks") as stage:
        ...     stage.advance()
    """

    def stage(self, name: str, total: int, unit: str = "") -> AbstractContextManager[Stage]:
        """Return a stage that says nothing."""
        return nullcontext(self)

    def advance(self, amount: int = 1) -> None:
        """Say nothing."""
