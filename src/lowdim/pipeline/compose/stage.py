"""What every stage of a composition answers: what it promises, what it would break, and what it makes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from lowdim.core import registry
from lowdim.core.errors import RecipeError
from lowdim.core.settings import Settings

if TYPE_CHECKING:
    from lowdim.core.progress import Progress
    from lowdim.models.disk.source import Source

MASK, GRID, RANK = "mask", "grid", "rank"
"""What may hold of a model: zeros that stay zero, weights on a grid of few bits, matrices of low rank."""


@dataclass(frozen=True)
class Work:
    """What a stage is given.

    Attributes:
        source: the model as it is.
        out: the directory to appear.
        original: how the user named the model before all stages.
        held: the invariants that hold of the source.
        tokenizer: of the model.
        seed: of every draw.
        device: where it is computed.
        compute: of forward passes.
        progress: told of stages and their advance.
        announce: given plans as text.
    """

    source: Source
    out: Path
    original: str
    held: frozenset[str]
    tokenizer: Any
    seed: int
    device: str
    compute: str
    progress: Progress
    announce: Any


@dataclass(frozen=True)
class Stage(Settings, ABC):
    """Settings of one intervention, which knows what it does to what holds."""

    adds: ClassVar[frozenset[str]] = frozenset()
    breaks: ClassVar[frozenset[str]] = frozenset()
    ends: ClassVar[bool] = False
    """Whether it may end long before the time that it is planned for."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Return the stage that a mapping of a recipe means.

        Raises:
            RecipeError: an unknown setting, or a value out of its range.
        """
        from lowdim.core.recipe.families import build

        made: Self = build("stage", {"name": cls.word(), **values})
        return made

    @classmethod
    def word(cls) -> str:
        """Return the stage's name in a recipe."""
        target = f"{cls.__module__}:{cls.__qualname__}"
        return next(name for name in registry.names("stage") if registry.find("stage", name).target == target)

    def promises(self) -> frozenset[str]:
        """Return the invariants that hold of what it makes, whatever held before."""
        return self.adds

    def after(self, held: frozenset[str]) -> frozenset[str]:
        """Return what must hold of what it makes: what held before, and what it promises."""
        return held | self.promises()

    def renews(self) -> frozenset[str]:
        """Return the invariants that it makes anew, so that what held before is not what must hold."""
        return frozenset()

    def check(self, held: frozenset[str]) -> None:
        """Refuse, before any work, a model of which something holds that this stage destroys and nothing can restore.

        Args:
            held: the invariants that hold of the model it would be given.

        Raises:
            RecipeError: see above; it says what to do instead.
        """
        if hopeless := self.breaks & held:
            lost = min(hopeless)
            raise RecipeError(f"{self.word()} after {CAUSES[lost]}: {LOST[lost]}. {self.remedy}")

    remedy: ClassVar[str] = "Put it first."

    def described(self) -> dict[str, Any]:
        """Return the mapping that `of` turns back into the same settings."""
        return self.to_dict()

    def facts(self) -> Mapping[str, Sequence[Any]]:
        """Return the facts that it is about: "edits", "forget" and "retain", as `lowdim.data.facts.read.read` does."""
        return {}

    @abstractmethod
    def ahead(self, source: Source) -> float:
        """Return about how many seconds it takes; nothing is written.

        Args:
            source: the model before all stages.

        Raises:
            LowdimError: the stage would be refused then, whatever those before it make.
        """

    @abstractmethod
    def run(self, work: Work) -> dict[str, Any]:
        """Make ``work.out`` from ``work.source``, a directory like any other; return what is to be said of it."""


CAUSES = {MASK: "pruning", GRID: "rounding", RANK: "factorising"}
LOST = {
    MASK: "it fills the zeros, and setting them again would undo it",
    GRID: "it moves the weights off their grid, and rounding them again would undo it",
    RANK: "it makes the matrices full, and cutting their rank again would undo it",
}
