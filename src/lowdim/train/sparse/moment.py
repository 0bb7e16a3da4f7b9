"""One mask update, as a method sees it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lowdim.core.random import generator

if TYPE_CHECKING:
    from torch import Generator

    from lowdim.train.sparse.layer import Explored, SparseLayer

Order = Literal["after_step", "replace_step"]


@dataclass
class Moment:
    """One mask update, as a method sees it.

    Attributes:
        step: optimizer steps done, this one included, from 1.
        total: optimizer steps of the whole run.
        layers: the sparse weights.
        targets: units that each layer keeps at the end.
        explored: the units of each layer that were ever active.
        seed: of the run.
        memory: what the method remembers between updates; tensors, numbers and strings, saved with the run.
        observers: what `Method.observers` returned.
        restart: whether a weight that is dropped and grown again at once starts anew, instead of going on as it was.
        idle: names of layers to which no gradient came, such as experts without tokens; where they are among
            ``layers``, they may shrink, not grow.
    """

    step: int
    total: int | None
    layers: Sequence[SparseLayer]
    targets: Mapping[str, int]
    explored: Mapping[str, Explored]
    seed: int
    memory: dict[str, Any] = field(default_factory=dict)
    observers: Mapping[str, Any] = field(default_factory=dict)
    restart: bool = False
    idle: Collection[str] = ()

    @property
    def awake(self) -> list[SparseLayer]:
        """The layers that a gradient came to."""
        return [layer for layer in self.layers if layer.name not in self.idle]

    def generator(self, layer: SparseLayer, purpose: str) -> Generator:
        """Return the random numbers of one purpose, which depend on seed, step and the layer's name alone."""
        return generator(self.seed, purpose, self.step, layer.name)
