"""Masks chosen among random ones by the spectra of their graphs."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lowdim.core.random import derive_seed
from lowdim.core.settings import count
from lowdim.evaluate.probe.ramanujan import Ramanujan
from lowdim.train.initial.base import Allocated, Start, shapes_of
from lowdim.train.initial.random import draw_counts

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Sampled(Allocated):
    """Draws ``samples`` random masks by an allocation and picks among them."""

    allocation: Any = "erk"
    samples: int = count(10)

    @abstractmethod
    def pick(self, start: Start, drawn: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return the masks that are best."""

    def choose(self, start: Start, sparsity: float) -> dict[str, Tensor]:
        """Return the masks, on the weights' devices."""
        shapes, counts = shapes_of(start.weights), start.counts(self.allocation, sparsity)
        seeds = [derive_seed(start.seed, "sample", number) for number in range(self.samples)]
        best = self.pick(start, [draw_counts(shapes, counts, seed) for seed in seeds])
        return {name: mask.to(start.weights[name].device) for name, mask in best.items()}


@dataclass(frozen=True)
class RamanujanMasks(Sampled):
    """Of every layer's random masks the one whose graph is connected best.

    All samples keep as many weights in a layer, so that each layer may take its own. Where no sample of a layer has an
    IMDB, as in very sparse ones, its Ramanujan gap decides; see `lowdim.evaluate.probe.ramanujan.Ramanujan`.

    Args:
        allocation: how the budget is spread over the layers, as for `RandomMasks`.
        samples: masks drawn.
        measure: "imdb", over the nested regular graphs, or "delta_r", the gap of the whole layer; larger is better.

    Paper: "Revisiting Pruning at Initialization Through the Lens of Ramanujan Graph", ICLR 2023; the choice layer by
    layer is that of the authors' script.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 2))
        >>> {name: int(mask.sum()) for name, mask in RamanujanMasks().masks(net, sparsity=0.75).items()}
        {'0.weight': 64}
    """

    measure: Literal["imdb", "delta_r"] = "imdb"

    def pick(self, start: Start, drawn: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return the best mask of every layer."""
        found = [Ramanujan(minimum_degree=0).measure(masks).layers for masks in drawn]
        chosen = {}
        for name in drawn[0]:
            measured = [(layers[name].imdb, layers[name].gap.delta_r) for layers in found if name in layers]
            whole = self.measure == "delta_r" or all(math.isnan(imdb) for imdb, _ in measured)
            numbers = [gap if whole else -math.inf if math.isnan(imdb) else imdb for imdb, gap in measured]
            chosen[name] = drawn[numbers.index(max(numbers)) if numbers else 0][name]
        return chosen
