"""Random pruning: masks drawn once, by layer-wise shares alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowdim.core.allocation.shapes import resolve
from lowdim.train.initial.base import Initialisation, Start, shapes_of

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class RandomMasks(Initialisation):
    """Each layer keeps its share of the budget, at positions drawn uniformly: exactly that many.

    The baseline that every other mask has to beat. The authors' code keeps each weight with probability d_l
    instead, so that its count is random.

    Args:
        allocation: how the budget is spread over the layers: "uniform", "uniform-plus", "er", "erk",
            "erk-plus", a sparsity for every layer by name (such as ``ratios_of(snip(...))``), or an object with
            ``densities(shapes, sparsity)``.

    Paper: "The Unreasonable Effectiveness of Random Pruning: Return of the Most Naive Baseline for Sparse
    Training", arXiv 2202.02643.

    Example:
        >>> {n: int(m.sum()) for n, m in RandomMasks().draw({"a": (10, 4), "b": (20, 10)}, 0.75).items()}
        {'a': 19, 'b': 41}
    """

    allocation: Any = "erk"

    def choose(self, start: Start, sparsity: float) -> dict[str, Tensor]:
        """Draw masks on the weights' devices."""
        masks = self.draw(shapes_of(start.weights), sparsity, start.seed)
        return {name: mask.to(start.weights[name].device) for name, mask in masks.items()}

    def draw(self, shapes: Mapping[str, Sequence[int]], sparsity: float, seed: int = 0) -> dict[str, Tensor]:
        """Draw masks for named shapes."""
        return draw_counts(shapes, resolve(self.allocation, shapes, sparsity), seed)


def draw_counts(
    shapes: Mapping[str, Sequence[int]], counts: Mapping[str, int], seed: int
) -> dict[str, Tensor]:
    """Draw the given number of positions of each shape, uniformly and without replacement."""
    import math

    import torch

    from lowdim.core.random import generator
    from lowdim.core.transition import draw

    masks = {}
    for name, shape in shapes.items():
        size = math.prod(shape)
        none = torch.empty(0, dtype=torch.int64)
        mask = torch.zeros(size, dtype=torch.bool)
        mask[draw(counts[name], size, none, generator(seed, "mask", name))] = True
        masks[name] = mask.reshape(tuple(shape))
    return masks


def random_masks(
    model: nn.Module | Mapping[str, Sequence[int]],
    sparsity: float,
    allocation: Any = "erk",
    seed: int = 0,
    *,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """Draw masks at random; see `RandomMasks`.

    Args:
        model: a network, or the shapes of its weights by name.
        sparsity: share of zeros over the chosen weights.
        allocation: see `RandomMasks`.
        seed: seeds the positions; each weight's depend on this and its name alone.
        include: globs of the weights to choose from, if ``model`` is a network.
        exclude: globs of weights that stay dense, if ``model`` is a network.

    Raises:
        RecipeError: the sparsity, the allocation or a glob is impossible.
    """
    method = RandomMasks(allocation)
    if isinstance(model, Mapping):
        _no_globs(include, exclude)
        return method.draw(model, sparsity, seed)
    return method.masks(model, sparsity=sparsity, include=include, exclude=exclude, seed=seed)


def _no_globs(include: Sequence[str] | None, exclude: Sequence[str] | None) -> None:
    from lowdim.core.errors import RecipeError

    if include is not None or exclude is not None:
        raise RecipeError("include and exclude choose among a network's weights; leave out shapes by hand")


def ratios_of(masks: Mapping[str, Tensor]) -> dict[str, float]:
    """Return each mask's share of zeros, to be handed on as an ``allocation``.

    Random masks with the ratios of SNIP or GraSP are the SNIP-ratio and GraSP-ratio of arXiv 2202.02643.

    Example:
        >>> import torch
        >>> ratios_of({"a": torch.tensor([True, False, False, False])})
        {'a': 0.75}
    """
    return {name: 1.0 - int(mask.sum()) / max(1, mask.numel()) for name, mask in masks.items()}
