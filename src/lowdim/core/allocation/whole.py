"""Global: the weakest weights of the whole model fall, wherever they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from lowdim.core.allocation.base import Allocation, AllocationResult, LayerInfo, Scan, ScannedLayer
from lowdim.core.errors import NumericalError
from lowdim.core.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

_HALF = 1 << 16


@dataclass(frozen=True)
class Global(Allocation):
    """One threshold on |W| * scale for the whole model, found exactly without holding the model.

    fp32 numbers that are not negative order as their bit patterns do. A first scan counts the upper 16 bits, which
    finds the threshold's upper half; a second counts the lower 16 bits of the scores that share it. Of scores equal to
    the threshold, those of earlier layers are kept first. The sparsities are whole counts divided by the layers' sizes.

    Global magnitude pruning is what "The Emergence of Essential Sparsity in Large Pre-trained Models"
    (arXiv 2306.03805) studies.

    Example:
        >>> import torch
        >>> infos = [LayerInfo("a", 0, (1, 2)), LayerInfo("b", 1, (1, 2))]
        >>> weights = [torch.tensor([[5.0, -4.0]]), torch.tensor([[1.0, 6.0]])]
        >>> scan = lambda: iter([[ScannedLayer(i, w, None)] for i, w in zip(infos, weights)])
        >>> Global().allocate(infos, 0.5, scan).sparsities
        {'a': 0.5, 'b': 0.5}
    """

    scale_from: ClassVar[Literal["wanda", "score"] | None] = "score"
    reads_weights: ClassVar[bool] = True
    spans_model: ClassVar[bool] = True

    def allocate(self, layers: Sequence[LayerInfo], sparsity: float, scan: Scan) -> AllocationResult:
        """Return each layer's share of zeros; no value is measured beyond it."""
        total = sum(info.numel for info in layers)
        kept = self._kept(layers, total - round(sparsity * total), scan)
        sizes = {info.name: info.numel for info in layers}
        return AllocationResult({name: (n - kept[name]) / max(1, n) for name, n in sizes.items()})

    def _kept(self, layers: Sequence[LayerInfo], keep: int, scan: Scan) -> dict[str, int]:
        if keep == 0:
            return {info.name: 0 for info in layers}
        upper = sum(_histogram(_bits(layer) >> 16) for block in scan() for layer in block)
        top, inside = _bin(upper, keep)
        above: dict[str, int] = {}
        lower: dict[str, Tensor] = {}
        for block in scan():
            for layer in block:
                bits = _bits(layer)
                high = bits >> 16
                above[layer.info.name] = int((high > top).sum())
                lower[layer.info.name] = _histogram(bits[high == top] & (_HALF - 1))
        last, ties = _bin(sum(lower.values()), inside)
        kept: dict[str, int] = {}
        for info in layers:
            found = lower[info.name]
            equal = min(ties, int(found[last]))
            ties -= equal
            kept[info.name] = above[info.name] + int(found[last + 1 :].sum()) + equal
        return kept


def _bits(layer: ScannedLayer) -> Tensor:
    """Return the scores' fp32 bit patterns as int32, flat."""
    scores = layer.weight.float().abs()
    if layer.scale is not None:
        scores = scores * layer.scale.to(scores.device)
    bits = scores.view(torch.int32).flatten()
    if bits.numel() and int(bits.max()) >= 0x7F800000:
        raise NumericalError(f"the scores of {layer.info.name} hold NaN or Inf")
    return bits


def _histogram(values: Tensor) -> Tensor:
    return torch.bincount(values, minlength=_HALF).cpu()


def _bin(counts: Tensor | Literal[0], keep: int) -> tuple[int, int]:
    """Return the bin that holds the keep-th largest value, and how many of its values are among the kept."""
    assert isinstance(counts, torch.Tensor)
    from_above = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_above, keep))
    before = int(from_above[place - 1]) if place else 0
    return len(counts) - 1 - place, keep - before
