"""Rounding as a stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lowdim.core.lazy import Lazy
from lowdim.core.quantize import Grid
from lowdim.pipeline.compose.stage import GRID, RANK, Stage, Work

if TYPE_CHECKING:
    from lowdim.models import quantize
    from lowdim.models.disk import checkpoint
    from lowdim.models.disk.source import Source
else:
    quantize, checkpoint = Lazy("lowdim.models.quantize"), Lazy("lowdim.models.disk.checkpoint")

_SPEED = 2e7  # weights that are rounded in a second, about


@dataclass(frozen=True)
class Round(Stage):
    """Round the linear layers of the blocks; zeros stay zero, and what comes after is held to the same levels.

    Args:
        dtype: "int8", "int4" or "int3".
        group: columns of a row that share a scale.

    Example:
        >>> Round.of({"dtype": "int4"}).group
        64
    """

    dtype: Literal["int8", "int4", "int3"] = "int8"
    group: Literal[64, 128] = 64

    adds: ClassVar[frozenset[str]] = frozenset({GRID})
    breaks: ClassVar[frozenset[str]] = frozenset({GRID, RANK})
    remedy: ClassVar[str] = "Round once, and factorise without rounding."

    def ahead(self, source: Source) -> float:
        """From the weights that there are."""
        found = checkpoint.Checkpoint(source.path)
        return sum(found.info(name).numel for name in found.names()) / _SPEED

    def run(self, work: Work) -> dict[str, Any]:
        """Round from disk to disk."""
        grid = Grid.of(self.dtype, self.group)
        quantize.quantize(work.source.path, work.out, grid, overwrite=True, trust_remote_code=work.source.trusted)
        return {"dtype": self.dtype, "group": self.group}
