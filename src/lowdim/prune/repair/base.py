"""What every repair answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lowdim.core.choices import Word

if TYPE_CHECKING:
    from lowdim.core.pattern import Pattern
    from lowdim.prune.bench import Bench


@dataclass(frozen=True)
class Repair(Word, ABC):
    """Gives the weights that a mask keeps their new values.

    Attributes:
        needs: kinds of `lowdim.core.statistics.InputStatistics` that it reads.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def columns(self) -> int | None:
        """Columns whose mask it draws before any of them is updated; ``None`` if that does not matter."""
        return None

    def draws(self, pattern: Pattern) -> bool:
        """Whether it draws masks of a pattern itself, from weights that it has updated so far.

        It is asked only for scores that allow it (`Score.sweep_damping`) and layers whose mask nothing else decides.
        """
        return False

    def prepare(self, bench: Bench) -> None:
        """Change the dense weights before masks are drawn from them; most repairs do not."""
        return

    @abstractmethod
    def apply(self, bench: Bench) -> None:
        """Set every layer's result, zero off its mask, and its mask where that is not drawn yet.

        Where the bench has a grid, a repair may round the result itself and set its codes; one that does not is
        rounded to the nearest level afterwards.

        Raises:
            NumericalError: the numbers are beyond repair; the layer is named.
        """
