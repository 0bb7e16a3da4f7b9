"""A method as a word of a recipe, and what it sees of the other words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from lowdim.core.settings import Settings

if TYPE_CHECKING:
    from lowdim.core.allocation import Allocation
    from lowdim.core.pattern import Pattern
    from lowdim.core.score import Score


class Choices(Protocol):
    """The words of a recipe, as each of them sees the others in its ``check``."""

    @property
    def score(self) -> Score:
        """How much each weight matters."""

    @property
    def allocation(self) -> Allocation:
        """How much of the budget each layer gets."""

    @property
    def pattern(self) -> Pattern:
        """Which masks are legal."""

    @property
    def repair(self) -> Any:
        """What happens to the kept weights."""

    @property
    def refine(self) -> Any:
        """How a finished mask is moved."""

    @property
    def sequential(self) -> str:
        """When statistics are taken: "block" or "true"."""

    @property
    def legal(self) -> Pattern:
        """The pattern with what it leaves open decided."""

    def word(self, kind: str) -> str:
        """Return the registered name of the method of a kind."""


@dataclass(frozen=True)
class Word(Settings):
    """Base of the methods that are chosen together in one recipe."""

    def check(self, recipe: Choices) -> None:
        """Refuse a recipe whose other choices this one excludes.

        Raises:
            RecipeError: names both choices and a way out.
        """
