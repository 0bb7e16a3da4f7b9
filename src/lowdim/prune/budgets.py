"""From sparsities to whole numbers: how many weights each layer keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lowdim.core.allocation import LayerInfo
from lowdim.core.pattern import Pattern


@dataclass(frozen=True)
class Budget:
    """What a layer is to keep: ``keep`` weights, laid out by ``pattern``."""

    pattern: Pattern
    keep: int


def budgets(layers: Sequence[LayerInfo], sparsities: Mapping[str, float], pattern: Pattern) -> dict[str, Budget]:
    """Return each layer's pattern and count; unstructured and block counts add up to the target to one unit.

    Args:
        layers: the layers to prune.
        sparsities: share of zeros per layer.
        pattern: the recipe's pattern.

    Example:
        >>> from lowdim.core.pattern import Unstructured
        >>> layers = [LayerInfo("a", 0, (3, 3)), LayerInfo("b", 0, (3, 3))]
        >>> made = budgets(layers, {"a": 0.5, "b": 0.5}, Unstructured("matrix"))
        >>> [budget.keep for budget in made.values()]
        [4, 5]
    """
    shares = [sparsities[info.name] for info in layers]
    keeps = pattern.keeps([info.rows * info.cols for info in layers], shares)
    return {info.name: Budget(pattern.at(share), keep) for info, share, keep in zip(layers, shares, keeps, strict=True)}
