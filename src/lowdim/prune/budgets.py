"""From sparsities to whole numbers: how many weights each layer keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lowdim.core.allocation import LayerInfo
from lowdim.core.budget import apportion
from lowdim.core.pattern import NM, Block, Pattern
from lowdim.prune.engine import Budget


def budgets(
    layers: Sequence[LayerInfo], sparsities: Mapping[str, float], pattern: Pattern
) -> dict[str, Budget]:
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
    if isinstance(pattern, NM):
        return {info.name: _of_nm(info, pattern.at(sparsities[info.name])) for info in layers}
    unit = pattern.unit_size if isinstance(pattern, Block) else 1
    units = [info.rows * info.cols // unit for info in layers]
    zeros = [sparsities[info.name] * count for info, count in zip(layers, units, strict=True)]
    pruned = apportion(zeros, round(sum(zeros)), units)
    return {
        info.name: Budget(pattern, (count - gone) * unit)
        for info, count, gone in zip(layers, units, pruned, strict=True)
    }


def _of_nm(info: LayerInfo, pattern: NM) -> Budget:
    return Budget(pattern, info.rows * info.cols // pattern.group * pattern.keep)
