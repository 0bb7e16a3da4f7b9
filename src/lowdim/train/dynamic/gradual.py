"""Gradual magnitude pruning: the network becomes sparse while it trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from lowdim.core.errors import RecipeError
from lowdim.core.schedule import power
from lowdim.core.settings import share, within
from lowdim.train.sparse.exchange import shrink
from lowdim.train.sparse.method import Periodic
from lowdim.train.sparse.moment import Moment


@dataclass(frozen=True)
class GradualMagnitude(Periodic):
    """Every ``every`` steps the smallest |w| go, until the sparsity is the target.

    S_t = S_f + (S_i - S_f) * (1 - t / T)^3 at the k-th of n updates, t / T = k / n, where n = floor(until *
    total_steps / every): the last update reaches S_f exactly. Weights that are gone stay gone.

    Paper: "To prune, or not to prune: exploring the efficacy of pruning for model compression", arXiv 1710.01878.

    Args:
        every: optimizer steps between updates.
        until: share of the run at which the target is reached.
        start: sparsity at the first step; 0 trains dense weights first.
        scope: "global", one threshold for all layers, or "layer", every layer on its own way to what the allocation
            gives it.

    Example:
        >>> method = GradualMagnitude(every=10, until=0.8)
        >>> [round(method.sparsity(t, 50, 0.9), 5) for t in (0, 10, 20, 30, 40, 50)]
        [0.0, 0.52031, 0.7875, 0.88594, 0.9, 0.9]
    """

    needs_total: ClassVar[bool] = True
    changes_density: ClassVar[bool] = True

    until: float = share(0.7)
    start: float = within(0.0, least=0, below=1)
    scope: Literal["global", "layer"] = "global"

    def initial(self, sparsity: float) -> float:
        """Return ``start``.

        Raises:
            RecipeError: it is above the target.
        """
        if self.start > sparsity:
            raise RecipeError(f"start must be at most the target sparsity, {sparsity:g}; got {self.start:g}")
        return self.start

    def progress(self, step: int, total: int | None) -> float:
        """Return k / n, how far the updates have come."""
        updates = int(self.last(total) // self.every)
        return min(1.0, (step // self.every) / updates) if updates else 1.0

    def sparsity(self, step: int, total: int | None, target: float) -> float:
        """Return S_t."""
        return power(self.progress(step, total), 1.0, self.start, target)

    def update(self, moment: Moment) -> None:
        """Shrink the layers to what the schedule leaves them."""
        self.prune(moment)

    def prune(self, moment: Moment) -> None:
        """Drop the smallest weights that are beyond the schedule."""
        if self.scope == "global":
            size = sum(layer.size for layer in moment.layers)
            keep = self._keep(moment, size, sum(moment.targets.values()))
            shrink(moment.layers, keep)
            return
        for layer in moment.layers:
            shrink([layer], self._keep(moment, layer.size, moment.targets[layer.name]))

    def _keep(self, moment: Moment, size: int, target: int) -> int:
        progress = self.progress(moment.step, moment.total)
        start = (1.0 - self.start) * size if self.scope == "global" else self._begun(size, target)
        return max(target, round(power(progress, 1.0, start, target)))

    def _begun(self, size: int, target: int) -> float:
        """Return how many weights a layer starts with if layers are pruned separately: never fewer than its target."""
        return max((1.0 - self.start) * size, float(target))
