"""Masks that lie farthest from the dense network in the full spectrum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowdim.core.lazy import torch
from lowdim.evaluate.probe.full_spectrum import Coordinate, FullSpectrum
from lowdim.train.initial.base import Start
from lowdim.train.initial.ramanujan import Sampled

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FullSpectrumMasks(Sampled):
    """Of some random masks the ones whose network lies farthest from the dense one at initialisation.

    A network's coordinate is that of `lowdim.evaluate.probe.full_spectrum.FullSpectrum`, the Ramanujan gap, IMDB and
    the weighted gaps of both; the distance is L2, over those of the four numbers that a layer has in both networks.

    Args:
        allocation: how the budget is spread over the layers, as for `RandomMasks`.
        samples: masks drawn.

    A reading of "Don't just prune by magnitude! Your mask topology is a secret weapon", NeurIPS 2023, of which there is
    no code: its abstract says that a sparse network's distance from its initialisation in these coordinates goes with
    its performance, and that masks are sampled by it.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 2))
        >>> {name: int(mask.sum()) for name, mask in FullSpectrumMasks().masks(net, sparsity=0.75).items()}
        {'0.weight': 64}
    """

    def pick(self, start: Start, drawn: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return the masks farthest from the dense network."""
        probe = FullSpectrum(minimum_degree=0)
        weights = {name: weight.detach() for name, weight in start.weights.items()}
        dense = probe.coordinate({name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()}, weights)
        distances = [_distance(dense, probe.coordinate(masks, weights)) for masks in drawn]
        return dict(drawn[distances.index(max(distances))])


def _distance(dense: Coordinate, sparse: Coordinate) -> float:
    """Return the distance over the numbers that are known of both."""
    total = 0.0
    for axis in range(4):
        pairs = [(dense.layers[name][axis], numbers[axis]) for name, numbers in sparse.layers.items()]
        known = [a - b for a, b in pairs if not math.isnan(a + b)]
        total += (sum(known) / len(known)) ** 2 if known else 0.0
    return total
