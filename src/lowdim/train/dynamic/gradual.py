"""Gradual magnitude pruning: the network becomes sparse while it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lowdim.core.budget import apportion
from lowdim.core.errors import RecipeError
from lowdim.core.lazy import Lazy
from lowdim.core.schedule import power
from lowdim.core.settings import share, within
from lowdim.train.sparse.exchange import shrink
from lowdim.train.sparse.method import Periodic, written
from lowdim.train.sparse.moment import Moment

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from lowdim.models.structure import selection
    from lowdim.train.sparse.layer import SparseLayer
else:
    selection = Lazy("lowdim.models.structure.selection")


@dataclass(frozen=True)
class GradualMagnitude(Periodic):
    """Every ``every`` steps the smallest |w| go, until the sparsity is the target.

    S_t = S_f + (S_i - S_f) * (1 - t / T)^3 at the k-th of n updates, t / T = k / n, where n = floor(until *
    total_steps / every) - floor(begin * total_steps / every): the last update reaches S_f exactly. Weights that are
    gone stay gone.

    Paper: "To prune, or not to prune: exploring the efficacy of pruning for model compression", arXiv 1710.01878.

    Args:
        every: optimizer steps between updates.
        until: share of the run at which the target is reached.
        start: sparsity at the first step; 0 trains dense weights first.
        scope: "global", one threshold for all layers; "layer", every layer on its own way to what the allocation gives
            it; or "uniform", all layers at one sparsity, whatever the allocation: but from 80% on the network's
            classifier, if it is one of them, keeps a fifth, and the others as much less.
        begin: share of the run before which no mask moves.

    Example:
        >>> method = GradualMagnitude(every=10, until=0.8)
        >>> [round(method.sparsity(t, 50, 0.9), 5) for t in (0, 10, 20, 30, 40, 50)]
        [0.0, 0.52031, 0.7875, 0.88594, 0.9, 0.9]
    """

    needs_total: ClassVar[bool] = True
    changes_density: ClassVar[bool] = True

    until: float = share(0.7)
    start: float = within(0.0, least=0, below=1)
    scope: Literal["global", "layer", "uniform"] = "global"
    begin: float = share(0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.begin and self.begin >= self.until:
            raise RecipeError(f"begin must be below until, {self.until:g}; got {self.begin:g}")

    def __repr__(self) -> str:
        return written(self, {"begin": 0.0})

    def stands_still(self, total: int | None) -> str:
        """Say why no update comes between the beginning and the end."""
        if not self.begin or total is None:
            return super().stands_still(total)
        if self._updates(total) >= 1:
            return ""
        return (
            f"{type(self).__name__} would never prune: every is {self.every}, and no multiple of it lies between "
            f"step {self._first(total):g} (begin * total_steps) and {self.last(total):g} (until * total_steps). "
            "Choose a smaller every"
        )

    def overrules(self) -> str:
        """Say whether one threshold, or one sparsity, holds for all layers."""
        if self.scope == "layer":
            return ""
        return f"prunes all layers alike with scope={self.scope!r}, and goes by an allocation with scope='layer' alone"

    def _first(self, total: int | None) -> float:
        assert total is not None, "SparseTraining asks for total_steps where needs_total is set"
        return self.begin * total

    def _updates(self, total: int | None) -> int:
        return int(self.last(total) // self.every) - int(self._first(total) // self.every)

    def due(self, step: int, total: int | None) -> bool:
        """Tell whether masks move at a step: a multiple of ``every`` from the beginning to the last."""
        return step >= self._first(total) and super().due(step, total)

    def observers(
        self, model: nn.Module, optimizer: Optimizer, layers: Sequence[SparseLayer], total: int | None
    ) -> dict[str, Any]:
        """Remember which layer is the network's classifier, if that matters."""
        return {"classifier": Named(selection.ends(model)[1])} if self.scope == "uniform" else {}

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
        done, updates = step // self.every - int(self._first(total) // self.every), self._updates(total)
        return min(1.0, max(0, done) / updates) if updates > 0 else 1.0

    def sparsity(self, step: int, total: int | None, target: float) -> float:
        """Return S_t."""
        return power(self.progress(step, total), 1.0, self.start, target)

    def update(self, moment: Moment) -> None:
        """Shrink the layers to what the schedule leaves them."""
        self.prune(moment)

    def prune(self, moment: Moment) -> None:
        """Drop the smallest weights that are beyond the schedule."""
        if self.scope != "layer":
            size = sum(layer.size for layer in moment.layers)
            keep = self._keep(moment, size, sum(moment.targets.values()))
            if self.scope == "global":
                shrink(moment.layers, keep)
            else:
                self._uniformly(moment, keep, size)
            return
        for layer in moment.layers:
            shrink([layer], self._keep(moment, layer.size, moment.targets[layer.name]))

    def _uniformly(self, moment: Moment, keep: int, size: int) -> None:
        """Keep so many of all weights, the same share of each layer; what a layer lacks of it the others keep."""
        layers, kept = list(moment.layers), {}
        if 5 * keep <= size:
            head = [layer for layer in layers if layer.name == moment.observers["classifier"].name]
            kept = {layer.name: min(layer.kept, keep, layer.size // 5) for layer in head}
        rest = [layer for layer in layers if layer.name not in kept]
        left = min(keep - sum(kept.values()), sum(layer.kept for layer in rest))
        counts = apportion([float(layer.size) for layer in rest], left, [layer.kept for layer in rest])
        kept |= {layer.name: number for layer, number in zip(rest, counts, strict=True)}
        for layer in layers:
            shrink([layer], kept[layer.name])

    def _keep(self, moment: Moment, size: int, target: int) -> int:
        progress = self.progress(moment.step, moment.total)
        start = (1.0 - self.start) * size if self.scope != "layer" else self._begun(size, target)
        return max(target, round(power(progress, 1.0, start, target)))

    def _begun(self, size: int, target: int) -> float:
        """Return how many weights a layer starts with if layers are pruned separately: never fewer than its target."""
        return max((1.0 - self.start) * size, float(target))


@dataclass(frozen=True)
class Named:
    """Which layer is the network's classifier; empty where none is known."""

    name: str

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the network tells it."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to take."""

    def remove(self) -> None:
        """Nothing to take off."""
