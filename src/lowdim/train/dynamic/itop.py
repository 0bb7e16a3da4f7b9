"""ITOP: dynamic sparse training that counts what it has explored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from lowdim.core.schedule import cosine
from lowdim.core.settings import count, share
from lowdim.train.sparse.method import Candidates, Moment, Order, Periodic, refuse_groups

if TYPE_CHECKING:
    from lowdim.train.sparse.layer import Layer


@dataclass(frozen=True)
class ITOP(Periodic):
    """Every ``every`` steps, to the end, a layer loses ceil(zeta_t * kept) weights and gains as many.

    zeta_t = floor + (drop - floor) / 2 * (1 + cos(pi t / T)) over the whole run. What the masks have covered by then is
    R_s = |union of all masks| / weights, `SparseTraining.explored`: accuracy follows it as long as ``every`` is large
    enough for new weights to grow. ``grow`` "random" is SET-ITOP, "gradient" RigL-ITOP.

    Paper: "Do We Actually Need Dense Over-Parameterization? In-Time Over-Parameterization in Sparse Training",
        ICML 2021,
    arXiv 2102.02887. Its CIFAR settings: ``every`` 1500 (random) or 4000 (gradient) at batch 128, ``drop`` 0.5.

    Args:
        every: optimizer steps between updates.
        until: share of the run after which masks stand still; the paper moves them to the end.
        drop: zeta at the start.
        floor: zeta at the end.
        death: what is dropped: "magnitude", "sign-count" (as many of either sign) or "taylor" ((w g)^2).
        grow: "random", "unfired" (never active first) or "gradient".
        order: "after_step", the paper's, or "replace_step".
        candidates: "any" weight that is off, as in the paper; only "new" ones, not those just dropped; or
            "live" ones, of outputs that keep a weight. Behind a batch norm the gradients of an output without
            weights are up to 1 / sqrt(eps) = 316 times too large, and in small networks at 98% and beyond most
            growth is lost there.

    Example:
        >>> [round(ITOP().share(t, 100), 4) for t in (0, 50, 100)]
        [0.5, 0.2525, 0.005]
    """

    needs_total: ClassVar[bool] = True

    every: int = count(1500)
    drop: float = share(0.5)
    floor: float = share(0.005)
    death: Literal["magnitude", "sign-count", "taylor"] = "magnitude"
    grow: Literal["random", "unfired", "gradient"] = "random"
    order: Order = "after_step"  # type: ignore[misc]
    candidates: Candidates = "any"

    @property
    def wants_gradient(self) -> bool:
        """It does where weights grow by it or are dropped by (w g)^2."""
        return self.grow == "gradient" or self.death == "taylor"

    def check(self, layers: Sequence[Layer]) -> None:
        """Refuse to choose among groups what a group may not have: those never active, or new weights alone."""
        if self.grow == "unfired":
            refuse_groups(layers, "grow='unfired'", "'random' or 'gradient'")
        if self.candidates == "new":
            refuse_groups(layers, "candidates='new'", "'any'")

    def share(self, step: int, total: int | None) -> float:
        """Return zeta_t."""
        assert total is not None
        return cosine(step, total, self.drop, self.floor)

    def update(self, moment: Moment) -> None:
        """Drop and grow, layer by layer."""
        self._replace(moment, self.share(moment.step, moment.total))

    def shake(self, moment: Moment, fraction: float) -> None:
        """Do one update that drops ``fraction``."""
        self._replace(moment, fraction)

    def _replace(self, moment: Moment, share: float) -> None:
        from lowdim.train.sparse.exchange import replace

        for layer in moment.layers:
            count = math.ceil(share * layer.kept - 1e-9)
            replace(moment, layer, count, self.death, self.grow, self.candidates)
