"""ITOP: dynamic sparse training that counts what it has explored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lowdim.core.errors import RecipeError
from lowdim.core.lazy import Lazy
from lowdim.core.schedule import power
from lowdim.core.settings import Moot, count, share, within
from lowdim.train.sparse.exchange import Candidates, replace
from lowdim.train.sparse.method import Regrows, refuse_groups, written
from lowdim.train.sparse.moment import Moment, Order

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from lowdim.train.dynamic import momentum
    from lowdim.train.sparse.layer import SparseLayer
else:
    momentum = Lazy("lowdim.train.dynamic.momentum")


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
        schedule: of zeta: "cosine", the paper's; "linear", a straight line; "stepwise", the LinearDecay of its code: 1%
            less every 600 steps, down to ``floor``.
        death: what is dropped: "magnitude"; "sign-count", as many of either sign; "taylor", (w g)^2; "threshold", all
            |w| up to ``threshold``, however many: zeta_t plays no part.
        threshold: of that, 0.001 if not given.
        grow: "random", "unfired" (never active first), "gradient", or "momentum": where the momentum of the dense
            gradient is largest. That is held beside the optimizer's, and gradients stay dense at every step.
        order: "after_step", the paper's, or "replace_step".
        candidates: "any" weight that is off, as in the paper, or only "new" or "live" ones; see `Regrows`.

    Example:
        >>> [round(ITOP().share(t, 100), 4) for t in (0, 50, 100)]
        [0.5, 0.2525, 0.005]
        >>> [round(ITOP(schedule="stepwise").share(t, None), 4) for t in (599, 600, 1200)]
        [0.5, 0.495, 0.49]
    """

    moot: ClassVar[Moot] = {
        "threshold": ("death", ("magnitude", "sign-count", "taylor")),
        **dict.fromkeys(("drop", "floor", "schedule"), ("death", ("threshold",))),
    }

    every: int = count(1500)
    drop: float = share(0.5)
    floor: float = share(0.005)
    schedule: Literal["cosine", "linear", "stepwise"] = "cosine"
    death: Literal["magnitude", "sign-count", "taylor", "threshold"] = "magnitude"
    threshold: float | None = within(None, least=0)
    grow: Literal["random", "unfired", "gradient", "momentum"] = "random"
    order: Order = "after_step"  # type: ignore[misc]
    candidates: Candidates = "any"

    def __repr__(self) -> str:
        return written(self, {"schedule": "cosine", "threshold": None})

    @property
    def wants_gradient(self) -> bool:  # type: ignore[override]
        """It does where weights grow by it or are dropped by (w g)^2."""
        return self.grow == "gradient" or self.death == "taylor"

    @property
    def wants_every_gradient(self) -> bool:
        """It does where weights grow by momentum."""
        return self.grow == "momentum"

    def check(self, layers: Sequence[SparseLayer]) -> None:
        """Refuse to choose among groups what a group may not have, and the momentum of weights that are not held."""
        if self.grow == "unfired":
            refuse_groups(layers, "grow='unfired'", "'random' or 'gradient'")
        if self.death == "threshold":
            refuse_groups(layers, "death='threshold'", "'magnitude'")
        for layer in layers:
            if self.grow == "momentum" and layer.size != layer.parameter.numel():
                raise RecipeError(
                    f"grow='momentum' needs the gradient of every weight at every step, which {layer.name} does not "
                    "give: it must be held dense, without blocks. Use grow='gradient'"
                )
        super().check(layers)

    def observers(
        self, model: nn.Module, optimizer: Optimizer, layers: Sequence[SparseLayer], total: int | None
    ) -> dict[str, Any]:
        """Gather the momentum of all weights, if they grow by it."""
        if self.grow != "momentum":
            return {}
        return {layer.name: momentum.DenseMomentum(layer, optimizer) for layer in layers}

    def share(self, step: int, total: int | None) -> float:
        """Return zeta_t."""
        if self.schedule == "stepwise":
            return max(self.floor, self.drop * 0.99 ** (step // 600))
        if self.schedule == "linear":
            assert total is not None, "SparseTraining asks for total_steps where needs_total is set"
            return power(step, total, self.drop, self.floor, 1.0)
        return super().share(step, total)

    def update(self, moment: Moment) -> None:
        """Drop and grow, layer by layer."""
        if self.death != "threshold":
            self.shake(moment, self.share(moment.step, moment.total))
            return
        most = 0.001 if self.threshold is None else self.threshold
        for layer in moment.layers:
            low = int((layer.values().abs() <= most).sum())
            replace(moment, layer, low, "magnitude", self.grow, self.candidates)

    def shake(self, moment: Moment, fraction: float) -> None:
        """Do one update that drops ``fraction``."""
        death = "magnitude" if self.death == "threshold" else self.death
        self.regrow(moment, fraction, death, self.grow)
