"""Low rank as a stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lowdim.core.lazy import Lazy
from lowdim.core.recipe import families
from lowdim.core.settings import within
from lowdim.pipeline.compose.stage import GRID, MASK, RANK, Stage, Work

if TYPE_CHECKING:
    from torch import Tensor

    from lowdim.models import factors as homes
    from lowdim.models.disk import checkpoint, factors, rewrite
    from lowdim.models.disk.source import Source
    from lowdim.models.walk import skeleton
    from lowdim.nn import lowrank
    from lowdim.pipeline.compose import invariants, tune
else:
    checkpoint, rewrite = Lazy("lowdim.models.disk.checkpoint"), Lazy("lowdim.models.disk.rewrite")
    factors, lowrank = Lazy("lowdim.models.disk.factors"), Lazy("lowdim.nn.lowrank")
    homes, skeleton = Lazy("lowdim.models.factors"), Lazy("lowdim.models.walk.skeleton")
    invariants, tune = Lazy("lowdim.pipeline.compose.invariants"), Lazy("lowdim.pipeline.compose.tune")

_SPEED = 2e10  # operations a second of a singular value decomposition, about


@dataclass(frozen=True)
class Factorise(Stage):
    """Cut matrices of the blocks to a share of their directions, the best ones in the Frobenius norm.

    W becomes U_r S_r V_r^T, of a rank r that the rule chooses; matrices for which it chooses none stay as they are. A
    model of factors has U_r sqrt(S_r) and sqrt(S_r) V_r^T in the place of W: `lowdim.load` opens it with two thin
    layers for each (`lowdim.nn.lowrank.LowRankLinear`), and stages after this one see the products.

    Args:
        keep: share of the directions, or of the weights where the rule counts these.
        include: globs on the names of the weights; none means every linear layer of the blocks.
        rule: how the ranks are chosen, one of ``lowdim methods --kind rank``: a name, or a mapping with its settings.
        stored: "dense", each product as one matrix, or "factors", which must be smaller than the matrix.

    Example:
        >>> Factorise.of({"keep": 0.25}).keep
        0.25
    """

    keep: float = within(0.5, above=0, most=1)
    include: tuple[str, ...] = ()
    rule: Any = "uniform"
    stored: Literal["dense", "factors"] = "dense"

    adds: ClassVar[frozenset[str]] = frozenset({RANK})
    breaks: ClassVar[frozenset[str]] = frozenset({MASK, GRID})
    remedy: ClassVar[str] = "Factorise a model that is neither pruned nor rounded."

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "rule", families.describe("rank", families.build("rank", self.rule)))

    def renews(self) -> frozenset[str]:
        """The ranks: matrices that had fewer directions have them still, to rounding."""
        return self.adds

    def ahead(self, source: Source) -> float:
        """From the sizes of the matrices."""
        found = checkpoint.Checkpoint(source.path)
        sizes = [found.info(name).shape for name in tune.trainable(source, self.include)]
        return sum(20.0 * max(shape) * min(shape) ** 2 for shape in sizes) / _SPEED

    def run(self, work: Work) -> dict[str, Any]:
        """Decompose matrix by matrix and write the model again."""
        found = checkpoint.Checkpoint(work.source.path)
        changed: dict[str, Tensor | factors.Factors] = {}
        weights = {name: found.read(name) for name in tune.trainable(work.source, self.include)}
        if self.stored == "factors":
            model = skeleton.empty_model(work.source.path, found.dtype, work.source.trusted)
            for name in weights:
                homes.layer_of(model, name)  # refuses what could not be opened again
        chosen = families.build("rank", self.rule).ranks(weights, self.keep)
        ranks = {name: rank for name, rank in chosen.items() if rank < min(weights[name].shape)}
        with work.progress.stage("Factorise", len(ranks), "matrices") as stage:
            for name, rank in ranks.items():
                weight = weights[name]
                if self.stored == "dense":
                    changed[name] = invariants.truncated(weight, rank)
                elif rank * sum(weight.shape) < weight.numel():
                    changed[name] = factors.Factors(*(f.to(weight.dtype) for f in lowrank.factors_of(weight, rank)))
                stage.advance()
        rewrite.rewrite(work.source, work.out, changed, overwrite=True)
        return {"ranks": {name: ranks[name] for name in changed}, "weights": self._weights(weights, changed)}

    @staticmethod
    def _weights(before: Mapping[str, Tensor], after: Mapping[str, Tensor | factors.Factors]) -> dict[str, int]:
        """Return how many weights the matrices had, and how many are stored."""
        sizes = {name: weight.numel() for name, weight in before.items()}
        thin = {n: e.a.numel() + e.b.numel() for n, e in after.items() if isinstance(e, factors.Factors)}
        return {"before": sum(sizes.values()), "stored": sum((sizes | thin).values())}
