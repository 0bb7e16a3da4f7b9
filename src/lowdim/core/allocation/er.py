"""Erdos-Renyi: small and narrow layers keep more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lowdim.core.allocation.base import Allocation, AllocationResult, LayerInfo, Scan
from lowdim.core.allocation.densities import capped, er_score
from lowdim.core.errors import RecipeError


def _densities(layers: Sequence[LayerInfo], density: float) -> list[float]:
    scores = [er_score((info.rows, info.cols)) if info.numel else 0.0 for info in layers]
    return capped(scores, [info.numel for info in layers], density)


@dataclass(frozen=True)
class ER(Allocation):
    """Density proportional to (in + out) / (in * out), none above 1, so that kept weights grow with in + out.

    d_l = min(1, eps * (in_l + out_l) / (in_l * out_l)), with the one eps that meets the budget.

    Paper: "Scalable training of artificial neural networks with adaptive sparse connectivity inspired by
    network science" (SET), arXiv 1707.04780; the closed form with the limit is that of RigL, arXiv
    1911.11134.

    Example:
        >>> layers = [LayerInfo("a", 0, 10, 4), LayerInfo("b", 0, 20, 10), LayerInfo("c", 0, 5, 20)]
        >>> found = ER().allocate(layers, 0.8, lambda: iter([]))
        >>> [round(1 - s, 6) for s in found.sparsities.values()]
        [0.344928, 0.147826, 0.246377]
    """

    def allocate(self, layers: Sequence[LayerInfo], sparsity: float, scan: Scan) -> AllocationResult:
        """Return sparsities from the shapes alone."""
        densities = _densities(layers, 1.0 - sparsity)
        return AllocationResult({info.name: 1.0 - d for info, d in zip(layers, densities, strict=True)})


@dataclass(frozen=True)
class ERPlus(Allocation):
    """ER with the last layer dense, the rest sparser by as much.

    The last layer is the last weight of the last decoder block. The others share D' = (D * N - n_last) /
    (N - n_last) by ER, D being the target density and N all weights.

    Introduced (as ERK+) by "The Unreasonable Effectiveness of Random Pruning", arXiv 2202.02643, for a
    classifier kept dense; OWL (arXiv 2310.05175) compares it on language models as ER with the last layer
    forced dense at the same number of parameters. OWL's code does not contain it; this follows that
    description.

    Example:
        >>> layers = [LayerInfo("a", 0, 4, 4), LayerInfo("b", 1, 4, 4), LayerInfo("c", 2, 4, 4)]
        >>> list(ERPlus().allocate(layers, 0.5, lambda: iter([])).sparsities.values())
        [0.75, 0.75, 0.0]
    """

    def allocate(self, layers: Sequence[LayerInfo], sparsity: float, scan: Scan) -> AllocationResult:
        """Return sparsities from the shapes alone.

        Raises:
            RecipeError: the last layer alone holds more weights than the budget keeps.
        """
        *others, last = layers
        total = sum(info.numel for info in layers)
        rest = total - last.numel
        kept = (1.0 - sparsity) * total - last.numel
        if kept < -1e-6 * total:
            raise RecipeError(
                f"allocation er-plus keeps {last.name} dense, which is {last.numel / total:.3g} of all; "
                f"sparsity must be at most {1 - last.numel / total:.3g}; got {sparsity:g}. Use er instead"
            )
        densities = _densities(others, min(max(kept / rest, 0.0), 1.0)) if rest else []
        sparsities = {info.name: 1.0 - d for info, d in zip(others, densities, strict=True)}
        return AllocationResult(sparsities | {last.name: 0.0 if rest else sparsity})
