"""Refit: the kept weights that minimise the layer's squared output error, for a given mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowdim.core.settings import count, within
from lowdim.prune.repair.compensation import Compensation
from lowdim.prune.repair.solve import refit

if TYPE_CHECKING:
    from torch import Tensor

    from lowdim.prune.bench import Bench, Work
    from lowdim.prune.repair.hessian import Hessian


@dataclass(frozen=True)
class Refit(Compensation):
    """Solve, row by row, the least-squares problem over the kept weights.

    The solver (`lowdim.prune.repair.solve`) starts from the weights of a compensating sweep. When they are rounded,
    they are swept once more as they are: being the best for their mask, they gain nothing from pruned columns, and the
    loss of rounding adds to that of pruning.

    Args:
        damping: share of the Hessian's mean diagonal that is added to its diagonal; above 0.
        iterations: most iterations of the solver.
        tolerance: share of its target to which a row's residual must shrink; the layer's error is then off by about the
            square of it. 0 runs every iteration.
    """

    iterations: int = count(100)
    tolerance: float = within(1e-4, least=0, below=1)

    def improve(self, bench: Bench, hessian: Hessian) -> None:
        """Solve for the weights on each mask."""
        for work in bench.works:
            target = work.dense @ hessian.matrix
            work.result = refit(target, work.kept, hessian.matrix, work.made, self.iterations, self.tolerance)

    def rounded_from(self, work: Work) -> Tensor:
        """Return the weight that was solved for."""
        return work.made
