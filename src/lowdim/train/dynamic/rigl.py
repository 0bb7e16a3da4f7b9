"""RigL: drop the smallest weights, grow where the dense gradient is largest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from lowdim.core.schedule import cosine, power
from lowdim.core.settings import share
from lowdim.core.transition import whole
from lowdim.train.sparse.exchange import Candidates, replace
from lowdim.train.sparse.method import Regrows
from lowdim.train.sparse.moment import Moment, Order


@dataclass(frozen=True)
class RigL(Regrows):
    """Every ``every`` steps a layer loses floor(zeta_t * kept) of its smallest |w| and gains as many.

    zeta_t = drop / 2 * (1 + cos(pi t / T_end)), T_end = ``until`` * total_steps. Weights grow where |dL/d(M *
    W)| of the batch is largest, from zero; one that was just dropped is a candidate and goes on as it was.

    Paper: "Rigging the Lottery: Making All Tickets Winners", ICML 2020, arXiv 1911.11134. Its setting for ImageNet is
    ``every`` 100 at batch 4096, ``until`` 0.75, ``drop`` 0.3, cosine; smaller batches want a larger ``every``.

    Args:
        every: optimizer steps between updates.
        until: T_end as a share of the run.
        drop: zeta at the start.
        schedule: of zeta: "cosine", "constant", or "power", drop * (1 - t / T_end)^3.
        order: "replace_step", the paper's: an update takes the place of the optimizer's step; or "after_step".
        candidates: "any" weight that is off, as in the paper, or only "new" or "live" ones; see `Regrows`.
        noise: standard deviation of what breaks ties between |w|.

    Example:
        >>> [round(RigL(until=0.75).share(t, 100), 3) for t in (0, 25, 50, 75)]
        [0.3, 0.225, 0.075, 0.0]
    """

    wants_gradient: ClassVar[bool] = True

    until: float = share(0.75)
    drop: float = share(0.3)
    schedule: Literal["cosine", "constant", "power"] = "cosine"
    order: Order = "replace_step"  # type: ignore[misc]
    candidates: Candidates = "any"
    noise: float = 1e-5

    def due(self, step: int, total: int | None) -> bool:
        """Tell whether masks move at a step: a multiple of ``every`` before T_end."""
        return step % self.every == 0 and step < self.last(total)

    def share(self, step: int, total: int | None) -> float:
        """Return zeta_t."""
        last = self.last(total)
        if self.schedule == "constant":
            return self.drop
        return (cosine if self.schedule == "cosine" else power)(step, last, self.drop)

    def update(self, moment: Moment) -> None:
        """Replace the smallest weights by those with the largest gradient, layer by layer."""
        share = self.share(moment.step, moment.total)
        for layer in moment.layers:
            count = whole(share * layer.kept)
            replace(moment, layer, count, "magnitude", "gradient", self.candidates, noise=self.noise)
