"""ITOP: dynamic sparse training that counts what it has explored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lowdim.core.settings import count, share
from lowdim.train.sparse.exchange import Candidates
from lowdim.train.sparse.method import Regrows, refuse_groups
from lowdim.train.sparse.moment import Moment, Order

if TYPE_CHECKING:
    from lowdim.train.sparse.layer import SparseLayer


@dataclass(frozen=True)
class ITOP(Regrows):
    """Every ``every`` steps, to the end, a layer loses ceil(zeta_t * kept) weights and gains as many.

    zeta_t = floor + (drop - floor) / 2 * (1 + cos(pi t / T)) over the whole run. What the masks have covered by then is
    R_s = |union of all masks| / weights, `SparseTraining.explored`: accuracy follows it as long as ``every`` is large
    enough for new weights to grow. ``grow`` "random" is SET-ITOP, "gradient" RigL-ITOP.

    Paper: "Do We Actually Need Dense Over-Parameterization? In-Time Over-Parameterization in Sparse Training", ICML
    2021, arXiv 2102.02887. Its CIFAR settings: ``every`` 1500 (random) or 4000 (gradient) at batch 128, ``drop`` 0.5.

    Args:
        every: optimizer steps between updates.
        until: share of the run after which masks stand still; the paper moves them to the end.
        drop: zeta at the start.
        floor: zeta at the end.
        death: what is dropped: "magnitude", "sign-count" (as many of either sign) or "taylor" ((w g)^2).
        grow: "random", "unfired" (never active first) or "gradient".
        order: "after_step", the paper's, or "replace_step".
        candidates: "any" weight that is off, as in the paper, or only "new" or "live" ones; see `Regrows`.

    Example:
        >>> [round(ITOP().share(t, 100), 4) for t in (0, 50, 100)]
        [0.5, 0.2525, 0.005]
    """

    every: int = count(1500)
    drop: float = share(0.5)
    floor: float = share(0.005)
    death: Literal["magnitude", "sign-count", "taylor"] = "magnitude"
    grow: Literal["random", "unfired", "gradient"] = "random"
    order: Order = "after_step"  # type: ignore[misc]
    candidates: Candidates = "any"

    @property
    def wants_gradient(self) -> bool:  # type: ignore[override]
        """It does where weights grow by it or are dropped by (w g)^2."""
        return self.grow == "gradient" or self.death == "taylor"

    def check(self, layers: Sequence[SparseLayer]) -> None:
        """Refuse to choose among groups what a group may not have: those never active, or new weights alone."""
        if self.grow == "unfired":
            refuse_groups(layers, "grow='unfired'", "'random' or 'gradient'")
        super().check(layers)

    def shake(self, moment: Moment, fraction: float) -> None:
        """Do one update that drops ``fraction``."""
        self.regrow(moment, fraction, self.death, self.grow)
