"""NeurRev: wake dormant neurons by dropping the weights that hold them down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import TYPE_CHECKING, Any, Literal

from lowdim.core.errors import RecipeError
from lowdim.core.lazy import torch
from lowdim.core.settings import share
from lowdim.core.transition import drop_lowest, member, whole
from lowdim.train.dynamic.rigl import RigL
from lowdim.train.sparse.exchange import exchange, magnitudes
from lowdim.train.sparse.method import written
from lowdim.train.sparse.moment import Moment

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from lowdim.train.sparse.layer import SparseLayer


@dataclass(frozen=True)
class NeurRev(RigL):
    """RigL, but the share ``rho`` of what a layer drops are the weights that hold neurons down, the rest its smallest.

    Behind a ReLU, large negative weights hold a neuron's sum below zero, whatever it is fed; such a dormant neuron gets
    no gradient and nothing grows to it. Of the ceil(``rho`` * count) weights that go first, the "change" reading takes
    those that training has moved down the furthest since the last mask update, or since they grew if that was later;
    the "value" reading takes the most negative ones. Only weights that moved down, or are negative, go first. ``rho`` 0
    is RigL.

    A reading of "NeurRev: Train Better Sparse Neural Network Practically via Neuron Revitalization", ICLR 2024
    (OpenReview 60lNoatp7u), of which there is no public code and whose text we could not read: the abstract says that
    the drop rule changes and the growth does not, its public reviews that weights are judged by their change during
    training. ``rho`` and its default are guesses.

    Args:
        every: optimizer steps between updates.
        until: T_end as a share of the run.
        drop: zeta at the start.
        schedule: of zeta, as in `RigL`.
        order: "replace_step" or "after_step".
        candidates: "any" weight that is off, or only "new" or "live" ones; see `Regrows`.
        noise: standard deviation of what breaks ties between |w|.
        rho: share of the dropped weights that go for holding neurons down, rounded up.
        reading: what tells these: "change" of the weight during training, or its "value".

    Example:
        >>> NeurRev(rho=0.2).rho
        0.2
    """

    rho: float = share(0.1)
    reading: Literal["change", "value"] = "change"

    def __repr__(self) -> str:
        return written(self, {"reading": "value"})

    def check(self, layers: Sequence[SparseLayer]) -> None:
        """Refuse blocks as well, whose norms have no sign."""
        super().check(layers)
        for layer in layers:
            if layer.size != prod(layer.shape):
                raise RecipeError(f"NeurRev drops by sign; {layer.name} has a pattern of blocks: use RigL")

    def observers(
        self, model: nn.Module, optimizer: Optimizer, layers: Sequence[SparseLayer], total: int | None
    ) -> dict[str, Any]:
        """Remember the weights from before the first step, and from each update on."""
        return {layer.name: Before(layer, optimizer) for layer in layers} if self.reading == "change" else {}

    def update(self, moment: Moment) -> None:
        """Drop what holds neurons down and the smallest weights, grow by gradient, layer by layer."""
        share = self.share(moment.step, moment.total)
        for layer in moment.layers:
            count = whole(share * layer.kept)
            if self.candidates == "new":
                count = min(count, layer.size - layer.kept)
            down = moment.observers[layer.name].change() if self.reading == "change" else layer.values()
            heavy = min(ceil(self.rho * count - 1e-9), int((down < 0).sum()))
            keep = drop_lowest(down, heavy)
            small = magnitudes(moment, layer, self.noise).masked_fill(~keep, float("inf"))
            if count:
                keep &= drop_lowest(small, count - heavy)
                exchange(moment, layer, keep, "gradient", self.candidates)
        self._remember(moment)

    def shake(self, moment: Moment, fraction: float) -> None:
        """Drop ``fraction`` of every layer's smallest weights once, and grow as many."""
        super().shake(moment, fraction)
        self._remember(moment)

    def _remember(self, moment: Moment) -> None:
        for seen in moment.observers.values():
            seen.note()


class Before:
    """The weights of a layer as they were at the last mask update; at first, as they are before the first step."""

    def __init__(self, layer: SparseLayer, optimizer: Optimizer) -> None:
        self._layer = layer
        self._held: tuple[Tensor, Tensor] | None = None
        self._handle = optimizer.register_step_pre_hook(self._begin)

    def _begin(self, *_: Any) -> None:
        if self._held is None:
            self.note()

    def note(self) -> None:
        """Hold the weights as they are now."""
        self._held = self._layer.positions(), self._layer.values().clone()

    def change(self) -> Tensor:
        """Return w now - w then of the active weights, fp32 [kept]; one that was off then counts from zero."""
        positions, values = self._layer.positions(), self._layer.values()
        then, held = self._held or (positions, values)
        known = member(positions, then)
        since = torch.zeros_like(values)
        since[known] = held[torch.searchsorted(then, positions[known])]
        return values - since

    def state_dict(self) -> dict[str, Any]:
        """Return what is held."""
        return {"held": self._held}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what a ``state_dict`` held, on the device of the layer."""
        held, device = state["held"], self._layer.parameter.device
        self._held = None if held is None else (held[0].to(device), held[1].to(device))

    def remove(self) -> None:
        """Take the hook off."""
        self._handle.remove()
