"""The full-spectrum coordinate: structure and weights of a sparse network as one point."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lowdim.core.lazy import torch
from lowdim.core.settings import Settings, within
from lowdim.evaluate.errors import EvaluationError
from lowdim.evaluate.probe.ramanujan import LayerSpectrum, Ramanujan, mean

AXES = ("delta_r", "imdb", "weighted", "weighted_imdb")


@dataclass(frozen=True)
class Coordinate:
    """Where a network stands; NaN where no layer has the number.

    Attributes:
        delta_r: mean Ramanujan gap.
        imdb: mean over the nested regular graphs.
        weighted: mean spectral gap of the graph whose edges weigh |W|.
        weighted_imdb: that of the nested regular graphs.
        layers: the same four numbers layer by layer, in this order.
        left_out: why a layer is no part of the means.
    """

    delta_r: float
    imdb: float
    weighted: float
    weighted_imdb: float
    layers: dict[str, tuple[float, float, float, float]]
    left_out: dict[str, str]


@dataclass(frozen=True)
class FullSpectrum(Settings):
    """Coordinate of a network: (delta_r, IMDB, lambda, lambda_IMDB), with lambda = mu_0(|W|) - mu_hat(|W|).

    The farther a sparse network lies from its dense initialisation, the better it was found to train.

    Args:
        normalise: each gap over its bound and each lambda over its mu_0, so that every number is at most 1
            and no scale of weights or width of a layer outweighs the rest; False gives the bare numbers.
        minimum_degree: smallest mean degree, left and right, of a layer or nested graph that counts.

    Paper: "Don't just prune by magnitude! Your mask topology is a secret weapon", NeurIPS 2023. No code
    was published; the choice of these four numbers and their normalisation are readings of its abstract.

    Example:
        >>> import torch
        >>> ones = {"a": torch.ones(3, 3)}
        >>> point = FullSpectrum(normalise=False).coordinate({"a": ones["a"].bool()}, ones)
        >>> round(point.delta_r, 3), round(point.weighted, 3)
        (2.828, 3.0)
    """

    normalise: bool = True
    minimum_degree: float = within(3.0, least=0)

    def coordinate(self, masks: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> Coordinate:
        """Return the coordinate of a network.

        Args:
            masks: bool [out, in, ...] by name.
            weights: tensors of the same shapes by the same names.

        Raises:
            EvaluationError: no masks, a mask without a weight, other shapes.
            NumericalError: NaN or Inf in a kept weight.
        """
        found = Ramanujan(self.minimum_degree).measure(masks, weights)
        layers = {name: self._numbers(layer) for name, layer in found.layers.items() if not layer.thin}
        means = [mean([layer[axis] for layer in layers.values()]) for axis in range(4)]
        return Coordinate(means[0], means[1], means[2], means[3], layers, found.left_out)

    def distance(self, first: Coordinate, second: Coordinate) -> float:
        """Return the L2 distance of two coordinates of networks with the same layers.

        Each number is averaged over the layers that have it in both networks.

        Raises:
            EvaluationError: no layer has one of the four numbers in both networks.

        Example:
            >>> import torch
            >>> full = {"a": torch.ones(4, 4)}
            >>> sparse = {"a": torch.ones(4, 4) - torch.eye(4)}
            >>> probe = FullSpectrum(normalise=False)
            >>> points = [probe.coordinate({"a": net["a"] > 0}, net) for net in (full, sparse)]
            >>> round(probe.distance(*points), 3)
            3.654
        """
        total = 0.0
        for axis, what in enumerate(AXES):
            shared = [
                (first.layers[name][axis], second.layers[name][axis]) for name in first.layers if name in second.layers
            ]
            known = [pair for pair in shared if not math.isnan(sum(pair))]
            if not known:
                raise EvaluationError(
                    f"no layer has {what!r} in both networks (left out: {first.left_out | second.left_out}); "
                    "lower minimum_degree"
                )
            total += mean([a - b for a, b in known]) ** 2
        return math.sqrt(total)

    def _numbers(self, layer: LayerSpectrum) -> tuple[float, float, float, float]:
        if self.normalise:
            return (layer.gap.relative, layer.imdb_relative, layer.gap.weighted_relative, layer.weighted_imdb_relative)
        return layer.gap.delta_r, layer.imdb, layer.gap.weighted, layer.weighted_imdb
