"""The Ramanujan gap, IMDB and NaRC: ranking masks without training them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lowdim.core.errors import suggest
from lowdim.core.settings import Settings, within
from lowdim.evaluate.errors import EvaluationError

if TYPE_CHECKING:
    from torch import Tensor

    from lowdim.evaluate.probe.graph import Bipartite
    from lowdim.evaluate.probe.spectrum import Gap

Edges = Literal["once", "twice"]


@dataclass(frozen=True)
class LayerSpectrum:
    """One layer.

    Attributes:
        gap: of the whole graph; its weighted gap is that of the plain graph where no weights were given.
        components: connected components; more than one makes mu_hat large.
        narc: the normalised random coefficient.
        parts: gap of each left-regular part that is dense enough.
        left_out: left-regular parts that are not, mean degree below the minimum.
        thin: whether the layer itself is not: its numbers are no part of the network's.
    """

    gap: Gap
    components: int
    narc: float
    parts: tuple[Gap, ...]
    left_out: int
    thin: bool

    @property
    def imdb(self) -> float:
        """Mean delta_r of the parts; NaN without any."""
        return mean([part.delta_r for part in self.parts])

    @property
    def imdb_relative(self) -> float:
        """Mean of delta_r over its bound; NaN without any part that has one."""
        return mean([part.relative for part in self.parts])

    @property
    def weighted_imdb(self) -> float:
        """Mean weighted gap of the parts; NaN without any."""
        return mean([part.weighted for part in self.parts])

    @property
    def weighted_imdb_relative(self) -> float:
        """Mean of the weighted gap over mu_0; NaN without any part that has one."""
        return mean([part.weighted_relative for part in self.parts])

    @property
    def expansion(self) -> tuple[float, float]:
        """Mean and largest number of right nodes per left node of the parts; NaN without any."""
        ratios = [part.expansion for part in self.parts]
        return mean(ratios), max(ratios, default=math.nan)


@dataclass(frozen=True)
class Spectrum:
    """A network: means over its layers, NaN where no layer counts.

    Attributes:
        layers: every layer that has edges.
        left_out: why a layer is no part of the means: "empty", or "mean degree 1.50, 2.00 below 3".
        delta_s: mean over the layers that count.
        delta_r: likewise.
        imdb: likewise, over those that have regular parts.
        narc: likewise.
    """

    layers: dict[str, LayerSpectrum]
    left_out: dict[str, str]
    delta_s: float
    delta_r: float
    imdb: float
    narc: float


def mean(values: Sequence[float]) -> float:
    """Return the mean of what is not NaN; NaN where nothing is left."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


@dataclass(frozen=True)
class Ramanujan(Settings):
    """How well connected the graph of each layer is, beside the best that a graph of its degrees can be.

    Left nodes are inputs (of a convolution, channel times place in the kernel), right nodes outputs, edges
    kept weights; nodes without edges are left out. The gaps delta_s and delta_r are those of
    `lowdim.evaluate.probe.spectrum.Gap`. IMDB is the mean delta_r of the left-regular parts: all left
    nodes of one degree (at least three such) with the right nodes that they reach. The gap of the whole
    layer does not rank masks; IMDB does, and NaRC tells when a mask is merely random.

    The official code skips layers of mean degree below 3, which is the rule at 99%. Here they are measured
    like any other, and kept out of the network's means, with the reason in ``left_out``.

    Args:
        minimum_degree: smallest mean degree, left and right, of a layer or part that counts; 0 lets all count.
        edges: how often NaRC counts an edge: "once", or "twice" as in the official code, which alone makes
            the sign of NaRC tell something (see `lowdim.evaluate.probe.spectrum.narc`).

    Paper: "Revisiting Pruning at Initialization Through the Lens of Ramanujan Graph", ICLR 2023.

    Example:
        >>> import torch
        >>> ones = torch.ones(3, 3, dtype=torch.bool)
        >>> round(Ramanujan().measure({"a": ones}).delta_r, 3)
        2.828
        >>> two = {"a": torch.block_diag(ones, ones).bool()}
        >>> round(Ramanujan().measure(two).delta_r, 3)
        -0.172
    """

    minimum_degree: float = within(3.0, least=0)
    edges: Edges = "once"

    def measure(self, masks: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None) -> Spectrum:
        """Return the spectrum of a network.

        Args:
            masks: bool [out, in, ...] by name.
            weights: for the weighted gaps, tensors of the same shapes by the same names.

        Raises:
            EvaluationError: no masks, a mask without a weight, other shapes.
            NumericalError: NaN or Inf in a kept weight.
        """
        from lowdim.evaluate.probe.graph import Bipartite

        if not masks:
            raise EvaluationError("a spectrum needs masks; got none")
        layers: dict[str, LayerSpectrum] = {}
        left_out: dict[str, str] = {}
        for name, mask in masks.items():
            if weights is not None and name not in weights:
                raise EvaluationError(f"no weight was given for the mask of {name!r}. {suggest(name, weights)}")
            graph = Bipartite.of(name, mask, weights[name] if weights is not None else None)
            if not len(graph.left):
                left_out[name] = "empty"
                continue
            layers[name] = self._layer(graph)
            if layers[name].thin:
                degree = ", ".join(f"{d:.2f}" for d in layers[name].gap.degree)
                left_out[name] = f"mean degree {degree} below {self.minimum_degree:g}"
        full = [layer for layer in layers.values() if not layer.thin]
        return Spectrum(
            layers,
            left_out,
            delta_s=mean([layer.gap.delta_s for layer in full]),
            delta_r=mean([layer.gap.delta_r for layer in full]),
            imdb=mean([layer.imdb for layer in full]),
            narc=mean([layer.narc for layer in full]),
        )

    def _layer(self, graph: Bipartite) -> LayerSpectrum:
        from lowdim.evaluate.probe.spectrum import gap, narc

        whole = gap(graph)
        graphs = list(graph.regular_parts())
        dense = [part for part in graphs if min(len(part.left) / n for n in part.shape) >= self.minimum_degree]
        return LayerSpectrum(
            gap=whole,
            components=graph.components(),
            narc=narc(graph, whole, self.edges),
            parts=tuple(gap(part) for part in dense),
            left_out=len(graphs) - len(dense),
            thin=min(whole.degree) < self.minimum_degree,
        )
