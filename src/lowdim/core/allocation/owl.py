"""OWL: blocks with more outliers keep more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lowdim.core.allocation.base import (
    Allocation,
    AllocationResult,
    LayerInfo,
    Scan,
    ScannedLayer,
    by_block,
    whole_keeps,
)
from lowdim.core.budget import fit
from lowdim.core.choices import Choices
from lowdim.core.errors import NumericalError, RecipeError, clash
from lowdim.core.settings import within

if TYPE_CHECKING:
    from torch import Tensor

Pooling = Literal["block", "layer"]


@dataclass(frozen=True)
class OWL(Allocation):
    """Outlier weighed layerwise sparsity, one value per decoder block.

    With A = |W| * sqrt(mean x^2) of the dense model, a block's outlier share is D = 100 * (share of A above
    m * mean(A)). With D~ = D mapped linearly to [0, 1] over the blocks,

        S_b = S + 2 * lam * (mean(D~) - D~_b),

    the mean weighted by the blocks' numbers of weights; all layers of a block get S_b. The width of the range
    is 2 * lam and its mean is S, though it need not be centred on S. Values outside [0, 0.99] are clipped and
    the budget solved again (the paper's code clips nothing above and does not solve again).

    Args:
        m: how many times the mean makes an outlier.
        lam: half the range of the sparsities, 0.08 if not given. For an N:M pattern: the range of N in kept
            weights, 2 if not given.
        pooling: "block" counts over all weights of the block against their one mean (the paper's code);
            "layer" takes each layer against its own mean and averages the layers' shares.

    Paper: "Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs to High
    Sparsity", arXiv 2310.05175.

    Example:
        >>> infos = [LayerInfo(str(i), i, (1, 1)) for i in range(4)]
        >>> found = OWL().spread(infos, {0: 4.0, 1: 1.0, 2: 1.0, 3: 2.0}, 0.7, 0.08)
        >>> [round(found[i], 4) for i in range(4)]
        [0.5933, 0.7533, 0.7533, 0.7]
    """

    scale_from: ClassVar[Literal["wanda", "score"] | None] = "wanda"
    reads_weights: ClassVar[bool] = True
    fits_groups: ClassVar[bool] = True

    m: float = within(5.0, above=0, why="an outlier exceeds m times the mean")
    lam: float | None = within(None, least=0, why="half the range of the sparsities")
    pooling: Pooling = "block"

    def check(self, recipe: Choices) -> None:
        """Refuse a range of sparsities that reaches beyond all and nothing."""
        if self.lam is not None and self.lam > 0.5 and not recipe.pattern.groups_of:
            raise clash(
                f"allocation.lam={self.lam:g}",
                f"pattern={recipe.pattern}",
                "lam is half the range of the sparsities, so it cannot exceed 0.5",
                "Choose for example allocation.lam=0.08, or an N:M pattern, whose lam counts weights",
            )

    def allocate(self, layers: Sequence[LayerInfo], sparsity: float, scan: Scan) -> AllocationResult:
        """Return one sparsity per block; the values are the outlier shares in percent."""
        lam = 0.08 if self.lam is None else self.lam
        if lam > 0.5:
            raise RecipeError(f"lam is half the range of the sparsities and cannot exceed 0.5; got {lam}")
        measured, shares = self.measure(scan)
        found = self.spread(layers, shares, sparsity, lam)
        return AllocationResult({info.name: found[info.block] for info in layers}, measured)

    def allocate_nm(self, layers: Sequence[LayerInfo], keep: int, group: int, scan: Scan) -> AllocationResult:
        """Return mixed N:M: n_b = keep + lam * (D~_b - mean(D~)), in whole numbers from 1 to ``group``.

        The paper's code rounds each n_b by itself, which moves the mean; here they are rounded by largest
        remainder, which keeps it.
        """
        lam = 2.0 if self.lam is None else self.lam
        measured, shares = self.measure(scan)
        found = self.spread(layers, shares, 1.0 - keep / group, lam / (2 * group), 1.0 - 1.0 / group)
        real = AllocationResult({info.name: found[info.block] for info in layers}, measured)
        return whole_keeps(layers, real, keep, group)

    def describe(self, values: Mapping[str, float], layers: Sequence[LayerInfo], blocks: int) -> dict[str, Any]:
        """Return the outlier share of every block, pooled as it was measured; ``None`` for one without layers.

        Example:
            >>> layers = [LayerInfo("a", 0, (1, 3)), LayerInfo("b", 0, (1, 1))]
            >>> OWL(m=7).describe({"a": 2.0, "b": 6.0}, layers, 2)
            {'outliers': {'7': [0.03, None]}}
        """
        shares: list[float | None] = []
        for block in range(blocks):
            held = [info for info in layers if info.block == block]
            weights = [info.numel if self.pooling == "block" else 1 for info in held]
            found = sum(values[info.name] * weight for info, weight in zip(held, weights, strict=True))
            shares.append(found / sum(weights) / 100 if held else None)
        return {"outliers": {f"{self.m:g}": shares}}

    def measure(self, scan: Scan) -> tuple[dict[str, float], dict[int, float]]:
        """Return the outlier share, in percent, of each layer and of each block.

        A layer's share is against the mean that counts for it: its block's, or for pooling "layer" its own.

        Raises:
            NumericalError: a weight or scale is NaN or Inf.
        """
        layer_shares: dict[str, float] = {}
        block_shares: dict[int, float] = {}
        for block in scan():
            if not block:
                continue
            means = [_mean(layer) for layer in block]
            sizes = [layer.info.numel for layer in block]
            pooled = sum(m * n for m, n in zip(means, sizes, strict=True)) / max(1, sum(sizes))
            if self.pooling == "block":
                means, weights = [pooled] * len(block), sizes
            else:
                weights = [1] * len(block)
            counts = [_count_above(layer, self.m * mean) for layer, mean in zip(block, means, strict=True)]
            shares = [100.0 * count / max(1, size) for count, size in zip(counts, sizes, strict=True)]
            layer_shares |= {layer.info.name: share for layer, share in zip(block, shares, strict=True)}
            whole = sum(share * w for share, w in zip(shares, weights, strict=True)) / max(1, sum(weights))
            block_shares[block[0].info.block] = whole
        return layer_shares, block_shares

    def spread(
        self, layers: Sequence[LayerInfo], shares: dict[int, float], sparsity: float, lam: float, cap: float = 0.99
    ) -> dict[int, float]:
        """Map outlier shares per block to sparsities per block; see the class for the equation."""
        blocks = by_block(layers)
        sizes = [sum(info.numel for info in members) for members in blocks.values()]
        values = [shares[block] for block in blocks]
        low, high = min(values), max(values)
        if high == low or lam == 0.0 or not sum(sizes):
            return dict.fromkeys(blocks, sparsity)
        scaled = [(value - low) / (high - low) for value in values]
        mean = sum(x * n for x, n in zip(scaled, sizes, strict=True)) / sum(sizes)
        wanted = [sparsity + 2.0 * lam * (mean - x) for x in scaled]
        return dict(zip(blocks, fit(wanted, sizes, sparsity, cap), strict=True))


def _product(layer: ScannedLayer) -> Tensor:
    magnitude = layer.weight.float().abs()
    return magnitude if layer.scale is None else magnitude * layer.scale.to(magnitude.device)


def _mean(layer: ScannedLayer) -> float:
    """Return the mean of A, summed over rows first: one pass and no second matrix."""
    columns = layer.weight.float().abs().sum(0).double()
    if layer.scale is not None:
        columns = columns * layer.scale.to(columns.device).double()
    mean = float(columns.sum()) / max(1, layer.info.numel)
    if mean - mean != 0.0:
        raise NumericalError(f"the weights of {layer.info.name} or the norms of its inputs hold NaN or Inf")
    return mean


def _count_above(layer: ScannedLayer, threshold: float) -> int:
    return int((_product(layer) > threshold).sum())
