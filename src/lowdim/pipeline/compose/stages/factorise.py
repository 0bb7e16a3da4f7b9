"""Low rank as a stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lowdim.core.lazy import Lazy
from lowdim.core.settings import within
from lowdim.pipeline.compose.stage import GRID, MASK, RANK, Stage, Work

if TYPE_CHECKING:
    from torch import Tensor

    from lowdim.models.disk import checkpoint, rewrite
    from lowdim.models.disk.source import Source
    from lowdim.pipeline.compose import invariants, tune
else:
    checkpoint, rewrite = Lazy("lowdim.models.disk.checkpoint"), Lazy("lowdim.models.disk.rewrite")
    invariants, tune = Lazy("lowdim.pipeline.compose.invariants"), Lazy("lowdim.pipeline.compose.tune")

_SPEED = 2e10  # operations a second of a singular value decomposition, about


@dataclass(frozen=True)
class Factorise(Stage):
    """Cut every matrix of the blocks to a share of its directions, the best ones in the Frobenius norm.

    W becomes U_r S_r V_r^T, r = round(keep * min(out, in)), and is written as one dense matrix: what it saves is there
    for who stores factors (`lowdim.nn.lowrank.LowRankLinear`).

    Args:
        keep: share of the directions.
        include: globs on the names of the weights; none means every linear layer of the blocks.

    Example:
        >>> Factorise.of({"keep": 0.25}).keep
        0.25
    """

    keep: float = within(0.5, above=0, most=1)
    include: tuple[str, ...] = ()

    adds: ClassVar[frozenset[str]] = frozenset({RANK})
    breaks: ClassVar[frozenset[str]] = frozenset({MASK, GRID})
    remedy: ClassVar[str] = "Factorise a model that is neither pruned nor rounded."

    def ahead(self, source: Source) -> float:
        """From the sizes of the matrices."""
        found = checkpoint.Checkpoint(source.path)
        sizes = [found.info(name).shape for name in tune.trainable(source, self.include)]
        return sum(20.0 * max(shape) * min(shape) ** 2 for shape in sizes) / _SPEED

    def run(self, work: Work) -> dict[str, Any]:
        """Decompose matrix by matrix and write the model again."""
        found, ranks = checkpoint.Checkpoint(work.source.path), dict[str, int]()
        changed: dict[str, Tensor] = {}
        names = tune.trainable(work.source, self.include)
        with work.progress.stage("Factorise", len(names), "matrices") as stage:
            for name in names:
                weight = found.read(name)
                rank = max(1, round(self.keep * min(weight.shape)))
                if rank < min(weight.shape):
                    ranks[name], changed[name] = rank, invariants.truncated(weight, rank)
                stage.advance()
        rewrite.rewrite(work.source, work.out, changed, overwrite=True)
        return {"ranks": ranks}
