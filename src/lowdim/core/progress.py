"""How library code reports progress without knowing of terminals: a protocol, and silence."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self


class Stage(Protocol):
    """One stage of the work, used as a context manager."""

    def __enter__(self) -> Self:
        """Start the stage."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the stage, whether it succeeded or not."""

    def advance(self, amount: int = 1) -> None:
        """Report that ``amount`` more units are done."""

    def log(self, text: str) -> None:
        """Say something about this stage in one line."""


class Progress(Protocol):
    """What a long call reports to."""

    def stage(self, name: str, total: int, unit: str = "") -> Stage:
        """Return a stage of ``total`` units, such as 30 "blocks"; entering it starts its clock."""

    def log(self, text: str) -> None:
        """Say something in one line."""


class _SilentStage:
    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def advance(self, amount: int = 1) -> None: ...

    def log(self, text: str) -> None: ...


class Silent:
    """The default: says nothing.

    Example:
        >>> with Silent().stage("prune", 30, "blocks") as stage:
        ...     stage.advance()
    """

    def stage(self, name: str, total: int, unit: str = "") -> Stage:
        """Return a stage that says nothing."""
        return _SilentStage()

    def log(self, text: str) -> None:
        """Say nothing."""
