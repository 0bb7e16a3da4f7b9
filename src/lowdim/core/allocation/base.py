"""What every allocation answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lowdim.core.allocation.counts import whole_counts
from lowdim.core.choices import Word
from lowdim.core.errors import RecipeError
from lowdim.core.settings import check_sparsity

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LayerInfo:
    """A layer that becomes sparse: its name, the index of its block, and the shape of its weight, [out, in, ...]."""

    name: str
    block: int
    shape: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Outputs."""
        return self.shape[0]

    @property
    def cols(self) -> int:
        """Weights per output."""
        return prod(self.shape[1:])

    @property
    def numel(self) -> int:
        """Weights in the layer."""
        return prod(self.shape)


@dataclass(frozen=True, eq=False)
class ScannedLayer:
    """A layer of the dense model: its weight, fp32 [out, in], and its column scale, [in] or None."""

    info: LayerInfo
    weight: Tensor
    scale: Tensor | None


Scan = Callable[[], Iterator[list[ScannedLayer]]]
"""Reads the dense model once: one list of layers per decoder block, in order. May be called again."""


@dataclass(frozen=True)
class AllocationResult:
    """Share of zeros per layer, and what was measured to find it (for the report; empty if nothing was)."""

    sparsities: dict[str, float]
    values: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Allocation(Word, ABC):
    """Splits one budget over the layers: sparsities in [0, 1] whose weighted mean is the target to 1e-6.

    The same for pruning, which takes ``allocate``, and for training, which takes whole numbers from ``counts``.

    Attributes:
        scale_from: which column scale the scan must carry: Wanda's, that of the recipe's score, or none.
        reads_weights: whether the scan is needed at all.
        spans_model: whether weights are compared over the whole model, which decides the layers' shares.
        fits_groups: whether its sparsities make whole N:M patterns.
    """

    scale_from: ClassVar[Literal["wanda", "score"] | None] = None
    reads_weights: ClassVar[bool] = False
    spans_model: ClassVar[bool] = False
    fits_groups: ClassVar[bool] = False

    def describe(self, values: Mapping[str, float], layers: Sequence[LayerInfo], blocks: int) -> dict[str, Any]:
        """Return what was measured, as the manifest's ``probes``; empty if nothing was.

        Args:
            values: what was measured in each layer.
            layers: the layers.
            blocks: number of decoder blocks.
        """
        return {}

    def in_schema(self, schema: int) -> Allocation:
        """Return the allocation as a recipe of a schema means it."""
        return self

    @abstractmethod
    def allocate(self, layers: Sequence[LayerInfo], sparsity: float, scan: Scan) -> AllocationResult:
        """Return a sparsity for every layer.

        Args:
            layers: the layers to prune, in model order.
            sparsity: target share of zeros over all their weights.
            scan: reads the dense model; called only if ``reads_weights``.

        Raises:
            RecipeError: the budget cannot be met.
            NumericalError: a weight or scale is NaN or Inf.
        """

    def densities(self, layers: Sequence[LayerInfo], sparsity: float, scan: Scan) -> dict[str, float]:
        """Return the share of weights that each layer keeps."""
        found = self.allocate(layers, sparsity, scan).sparsities
        return {name: 1.0 - share for name, share in found.items()}

    def counts(self, layers: Sequence[LayerInfo], sparsity: float | None, scan: Scan) -> dict[str, int]:
        """Return how many weights each layer keeps, exactly round((1 - ``sparsity``) * N) in all; see `whole_counts`.

        Raises:
            RecipeError: the budget is missing, out of range or impossible.
        """
        if sparsity is None:
            raise RecipeError("sparsity must be given, such as 0.9 (the share of zeros); got None")
        wanted = check_sparsity(sparsity)
        sizes = {info.name: info.numel for info in layers}
        return whole_counts(sizes, self.densities(layers, wanted, scan), wanted)

    def allocate_nm(self, layers: Sequence[LayerInfo], keep: int, group: int, scan: Scan) -> AllocationResult:
        """Return sparsities that are whole N:M patterns, 1 - n / group with 1 <= n <= group.

        The real-valued n of ``allocate`` are rounded by largest remainder so that their weighted mean stays
        ``keep``: exactly if the blocks are of one size, else to half of one block's share. Layers of a block
        that were allocated the same stay the same.

        Args:
            layers: the layers to prune, in model order.
            keep: mean number of weights kept per group.
            group: weights per group.
            scan: as for ``allocate``.
        """
        result = self.allocate(layers, 1.0 - keep / group, scan)
        return whole_keeps(layers, result, keep, group)


def by_block(layers: Sequence[LayerInfo]) -> dict[int, list[LayerInfo]]:
    """Return the layers of each decoder block, in order."""
    blocks: dict[int, list[LayerInfo]] = {}
    for info in layers:
        blocks.setdefault(info.block, []).append(info)
    return blocks


def whole_keeps(layers: Sequence[LayerInfo], result: AllocationResult, keep: int, group: int) -> AllocationResult:
    """Round sparsities to whole N:M patterns whose weighted mean is ``keep``; see ``allocate_nm``."""
    units: dict[tuple[int, float], list[LayerInfo]] = {}
    for info in layers:
        units.setdefault((info.block, result.sparsities[info.name]), []).append(info)
    real = [min(max((1.0 - s) * group, 1.0), float(group)) for _, s in units]
    sizes = [sum(info.numel for info in members) for members in units.values()]
    whole = [int(n + 1e-9) for n in real]
    left = keep * sum(sizes) - sum(n * size for n, size in zip(whole, sizes, strict=True))
    for i in sorted(range(len(whole)), key=lambda i: whole[i] - real[i]):
        if whole[i] < group and left >= sizes[i] / 2:
            whole[i] += 1
            left -= sizes[i]
    made = {info.name: 1.0 - n / group for n, members in zip(whole, units.values(), strict=True) for info in members}
    return AllocationResult({info.name: made[info.name] for info in layers}, result.values)
