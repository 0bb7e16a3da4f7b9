"""GraNet: gradual pruning with neuroregeneration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lowdim.core.settings import share
from lowdim.train.dynamic.gradual import GradualMagnitude
from lowdim.train.sparse.exchange import Candidates
from lowdim.train.sparse.method import Regrows
from lowdim.train.sparse.moment import Moment


@dataclass(frozen=True, repr=False)
class GraNet(GradualMagnitude, Regrows):
    """Every ``every`` steps: gradual magnitude pruning, then as many weights drop and grow as zeta_t says.

    The pruning is that of `GradualMagnitude` and ends at ``until``, with the target reached (the official code
    stops one update short of it). The regeneration goes on to the end: every layer loses ceil(zeta_t * kept) of
    its smallest |w| and gains as many where |gradient| is largest; zeta_t falls along a cosine from ``drop`` to
    ``floor`` over the run. With ``start`` 0 it goes from dense to sparse, with 0.5 from sparse to sparse
    (GraNet-ST). ``drop`` 0 with ``floor`` 0 is gradual magnitude pruning.

    Paper: "Sparse Training via Boosting Pruning Plasticity with Neuroregeneration", NeurIPS 2021, arXiv 2106.10404. Its
    CIFAR setting: ``every`` 1000, pruned from epoch 0 to 110 of 160.

    Args:
        every: optimizer steps between updates.
        until: share of the run at which the target is reached.
        start: sparsity at the first step.
        scope: "global", the paper's; "uniform", its GraNet_uniform; or "layer"; see `GradualMagnitude`.
        begin: t_0, share of the run before which nothing is pruned or regenerated.
        drop: zeta at the start.
        floor: zeta at the end.
        candidates: of the regeneration: "any" weight that is off, as in the paper, or only "new" or "live" ones; see
            `Regrows`.

    Example:
        >>> GraNet(every=10).due(100, 100), round(GraNet().share(50, 100), 4)
        (True, 0.2525)
        >>> [round(GraNet(every=10, begin=0.2, until=0.6).sparsity(t, 100, 0.9), 5) for t in (20, 30, 40, 50, 60)]
        [0.0, 0.52031, 0.7875, 0.88594, 0.9]
    """

    wants_gradient: ClassVar[bool] = True

    drop: float = share(0.5)
    floor: float = share(0.005)
    candidates: Candidates = "any"

    def due(self, step: int, total: int | None) -> bool:
        """Tell whether masks move at a step: every multiple of ``every`` from the beginning to the end of the run."""
        return step % self.every == 0 and step >= self._first(total)

    def update(self, moment: Moment) -> None:
        """Prune, then regenerate."""
        self.prune(moment)
        self.regrow(moment, self.share(moment.step, moment.total), "magnitude", "gradient")
