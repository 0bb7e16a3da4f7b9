"""Random pruning: masks drawn once, by layer-wise shares alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowdim.core.allocation import counts_for
from lowdim.core.lazy import torch
from lowdim.core.random import generator
from lowdim.core.transition import draw
from lowdim.train.initial.base import Allocated, Start, shapes_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RandomMasks(Allocated):
    """Each layer keeps its share of the budget, at positions drawn uniformly: exactly that many.

    The baseline that every other mask has to beat. The authors' code keeps each weight with probability d_l
    instead, so that its count is random.

    Args:
        allocation: how the budget is spread over the layers: the name of an allocation of shapes alone, such as
            "erk", the object, or a sparsity for every layer by name, such as ``ratios_of(SNIP().masks(...))``.

    Paper: "The Unreasonable Effectiveness of Random Pruning: Return of the Most Naive Baseline for Sparse
    Training", arXiv 2202.02643.

    Example:
        >>> {n: int(m.sum()) for n, m in RandomMasks().draw({"a": (10, 4), "b": (20, 10)}, 0.75).items()}
        {'a': 19, 'b': 41}
    """

    allocation: Any = "erk"

    def choose(self, start: Start, sparsity: float) -> dict[str, Tensor]:
        """Draw masks on the weights' devices."""
        weights = start.apart(start.weights)
        masks = draw_counts(shapes_of(weights), start.counts(self.allocation, sparsity), start.seed)
        return start.together({name: mask.to(weights[name].device) for name, mask in masks.items()})

    def draw(self, shapes: Mapping[str, Sequence[int]], sparsity: float, seed: int = 0) -> dict[str, Tensor]:
        """Draw masks for named shapes."""
        return draw_counts(shapes, counts_for(shapes, self.allocation, sparsity), seed)


def draw_counts(shapes: Mapping[str, Sequence[int]], counts: Mapping[str, int], seed: int) -> dict[str, Tensor]:
    """Draw the given number of positions of each shape, uniformly and without replacement."""
    masks = {}
    for name, shape in shapes.items():
        size = math.prod(shape)
        none = torch.empty(0, dtype=torch.int64)
        mask = torch.zeros(size, dtype=torch.bool)
        mask[draw(counts[name], size, none, generator(seed, "mask", name))] = True
        masks[name] = mask.reshape(tuple(shape))
    return masks


def ratios_of(masks: Mapping[str, Tensor]) -> dict[str, float]:
    """Return each mask's share of zeros, to be handed on as an ``allocation``.

    Random masks with the ratios of SNIP or GraSP are the SNIP-ratio and GraSP-ratio of arXiv 2202.02643.

    Example:
        >>> import torch
        >>> ratios_of({"a": torch.tensor([True, False, False, False])})
        {'a': 0.75}
    """
    return {name: 1.0 - int(mask.sum()) / max(1, mask.numel()) for name, mask in masks.items()}
