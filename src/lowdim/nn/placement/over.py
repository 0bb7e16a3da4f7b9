"""A placement on top of another: what it changes, it changes in the rule of that one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lowdim.core.recipe.families import build, describe
from lowdim.nn.placement.base import Placement
from lowdim.nn.residual.rule import Rule

if TYPE_CHECKING:
    from lowdim.nn.residual.sites import Site


@dataclass(frozen=True)
class Over(Placement):
    """Changes the rule of the placement below it.

    Args:
        over: the one below: a name, a mapping with a name and settings, or the object; None for the norms as they are.
    """

    over: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.over is not None:
            object.__setattr__(self, "over", describe("placement", build("placement", self.over)))

    @cached_property
    def below(self) -> Placement | None:
        """The placement below."""
        return None if self.over is None else build("placement", self.over)

    def rule(self, block: int, count: int, own: Rule) -> Rule:
        """Return the rule of the placement below, changed."""
        return self.changed(own if self.below is None else self.below.rule(block, count, own), block, count)

    def changed(self, rule: Rule, block: int, count: int) -> Rule:
        """Return a rule as this placement changes it."""
        return rule

    def check_start(self, trained: bool) -> None:
        """Refuse what the placement below does."""
        if self.below is not None:
            self.below.check_start(trained)

    def start(self, model: Any, sites: Sequence[Site]) -> list[Callable[[], None]]:
        """Return what sets the weights that the placement below begins with."""
        return [] if self.below is None else self.below.start(model, sites)
