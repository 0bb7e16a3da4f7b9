"""NeurRev: wake dormant neurons by dropping the weights that hold them down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from lowdim.core.errors import RecipeError
from lowdim.core.settings import share
from lowdim.core.transition import drop_lowest, whole
from lowdim.train.dynamic.rigl import RigL
from lowdim.train.sparse.exchange import exchange, magnitudes
from lowdim.train.sparse.moment import Moment

if TYPE_CHECKING:
    from lowdim.train.sparse.layer import SparseLayer


@dataclass(frozen=True)
class NeurRev(RigL):
    """RigL, but the share ``rho`` of what a layer drops are its most negative weights, the rest its smallest |w|.

    Behind a ReLU, large negative weights hold a neuron's sum below zero, whatever it is fed; such a dormant neuron gets
    no gradient and nothing grows to it. ``rho`` 0 is RigL.

    Paper: "NeurRev: Train Better Sparse Neural Network Practically via Neuron Revitalization", ICLR 2024 (OpenReview
    60lNoatp7u). There is no public code: the abstract says that the drop rule changes and the growth does not;
    that ``rho`` of the budget goes to the most negative weights is our reading, and its default is a guess.

    Args:
        every: optimizer steps between updates.
        until: T_end as a share of the run.
        drop: zeta at the start.
        schedule: of zeta, as in `RigL`.
        order: "replace_step" or "after_step".
        candidates: "any" weight that is off, or only "new" or "live" ones; see `Regrows`.
        noise: standard deviation of what breaks ties between |w|.
        rho: share of the dropped weights that are the most negative ones.

    Example:
        >>> NeurRev(rho=0.2).rho
        0.2
    """

    rho: float = share(0.1)

    def check(self, layers: Sequence[SparseLayer]) -> None:
        """Refuse blocks as well, whose norms have no sign."""
        super().check(layers)
        for layer in layers:
            if layer.size != prod(layer.shape):
                raise RecipeError(f"NeurRev drops by sign; {layer.name} has a pattern of blocks: use RigL")

    def update(self, moment: Moment) -> None:
        """Drop the most negative and the smallest weights, grow by gradient, layer by layer."""
        share = self.share(moment.step, moment.total)
        for layer in moment.layers:
            count = whole(share * layer.kept)
            if self.candidates == "new":
                count = min(count, layer.size - layer.kept)
            values = layer.values()
            heavy = min(whole(self.rho * count), int((values < 0).sum()))
            keep = drop_lowest(values, heavy)
            small = magnitudes(moment, layer, self.noise).masked_fill(~keep, float("inf"))
            if count:
                keep &= drop_lowest(small, count - heavy)
                exchange(moment, layer, keep, "gradient", self.candidates)
