"""AlphaPruning: layers whose spectra have heavier tails keep more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from lowdim.core.allocation.base import Allocation, AllocationResult, LayerInfo, Scan
from lowdim.core.budget import fit
from lowdim.core.settings import within
from lowdim.core.spectrum import Estimator, eigenvalues, tail_exponent

Mapped = Literal["block", "layer"]


@dataclass(frozen=True)
class AlphaPruning(Allocation):
    """Sparsity in proportion to the power-law exponent alpha of each weight's spectrum; needs no data.

    With alpha mapped linearly to phi in [1 - epsilon, 1 + epsilon], S_l = eta * phi_l with the one eta that
    meets the budget. A smaller alpha means a heavier tail: the layer is taken to be better trained and is pruned less.
    Values above 0.99 are clipped and the budget solved again (the paper's code does not).

    Args:
        epsilon: half the range of phi.
        estimator: where the tail starts, see ``lowdim.core.spectrum.tail_exponent``.
        mapping: "block" gives all layers of a block their mean alpha, "layer" each its own.

    Paper: "AlphaPruning: Using Heavy-Tailed Self Regularization Theory for Improved Layer-wise Pruning of
    Large Language Models", arXiv 2410.10912.

    Example:
        >>> infos = [LayerInfo(name, i, (8, 8)) for i, name in enumerate("abc")]
        >>> found = AlphaPruning().spread(infos, {"a": 2.0, "b": 3.0, "c": 4.0}, 0.7)
        >>> [round(s, 4) for s in found.values()]
        [0.49, 0.7, 0.91]
    """

    reads_weights: ClassVar[bool] = True

    epsilon: float = within(0.3, least=0, below=1, why="half the range of phi")
    estimator: Estimator = "xmin_peak"
    mapping: Mapped = "block"

    def allocate(self, layers: Sequence[LayerInfo], sparsity: float, scan: Scan) -> AllocationResult:
        """Return sparsities; the values are each layer's own alpha."""
        measured = {
            layer.info.name: tail_exponent(eigenvalues(layer.weight), self.estimator)
            for block in scan()
            for layer in block
        }
        known = {name: alpha for name, alpha in measured.items() if math.isfinite(alpha)}
        return AllocationResult(self.spread(layers, known, sparsity), known)

    def describe(self, values: Mapping[str, float], layers: Sequence[LayerInfo], blocks: int) -> dict[str, Any]:
        """Return each layer's exponent."""
        return {"alpha": dict(values)}

    def spread(self, layers: Sequence[LayerInfo], alphas: Mapping[str, float], sparsity: float) -> dict[str, float]:
        """Map exponents to sparsities; a layer without one counts as its block's, else the model's, mean."""
        if not alphas:
            return {info.name: sparsity for info in layers}
        values = self._pooled(layers, alphas)
        low, high = min(values), max(values)
        if high == low or self.epsilon == 0.0:
            return {info.name: sparsity for info in layers}
        phi = [1.0 + self.epsilon * (2.0 * (value - low) / (high - low) - 1.0) for value in values]
        found = fit(phi, [info.numel for info in layers], sparsity, how="scale")
        return {info.name: s for info, s in zip(layers, found, strict=True)}

    def _pooled(self, layers: Sequence[LayerInfo], alphas: Mapping[str, float]) -> list[float]:
        everywhere = math.fsum(alphas.values()) / len(alphas)
        by_block: dict[int, list[float]] = {}
        for info in layers:
            by_block.setdefault(info.block, []).extend([alphas[info.name]] if info.name in alphas else [])
        means = {b: math.fsum(found) / len(found) if found else everywhere for b, found in by_block.items()}
        if self.mapping == "block":
            return [means[info.block] for info in layers]
        return [alphas.get(info.name, means[info.block]) for info in layers]
