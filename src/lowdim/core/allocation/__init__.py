"""Allocations: how much of one budget each layer gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from lowdim.core import registry
from lowdim.core.allocation.alpha import AlphaPruning
from lowdim.core.allocation.base import Allocation, AllocationResult, LayerInfo, Scan, ScannedLayer
from lowdim.core.allocation.by_shape import layers_of
from lowdim.core.allocation.er import ER, ERPlus
from lowdim.core.allocation.erk import ERK, ERKPlus
from lowdim.core.allocation.explicit import Explicit, Named
from lowdim.core.allocation.gates import GateER
from lowdim.core.allocation.owl import OWL
from lowdim.core.allocation.uniform import Uniform, UniformPlus
from lowdim.core.allocation.whole import Global
from lowdim.core.errors import RecipeError
from lowdim.core.registry import register

__all__ = [
    "ER",
    "ERK",
    "OWL",
    "Allocation",
    "AllocationResult",
    "AlphaPruning",
    "ERKPlus",
    "ERPlus",
    "Explicit",
    "GateER",
    "Global",
    "LayerInfo",
    "Named",
    "Scan",
    "ScannedLayer",
    "Uniform",
    "UniformPlus",
    "counts_for",
    "parse",
]

_HERE = "lowdim.core.allocation"
_A = "allocation"
_RANDOM: Any = {
    "title": "The Unreasonable Effectiveness of Random Pruning: Return of the Most Naive Baseline for Sparse Training",
    "arxiv": "2202.02643",
    "year": 2022,
}
register(_A, "uniform", f"{_HERE}.uniform:Uniform", title="The same for every layer")
register(_A, "uniform-plus", f"{_HERE}.uniform:UniformPlus", **_RANDOM)
register(
    _A,
    "er",
    f"{_HERE}.er:ER",
    title="Scalable training of artificial neural networks with adaptive sparse connectivity inspired by network "
    "science",
    arxiv="1707.04780",
    year=2018,
)
register(_A, "er-plus", f"{_HERE}.er:ERPlus", **_RANDOM)
register(
    _A,
    "erk",
    f"{_HERE}.erk:ERK",
    title="Rigging the Lottery: Making All Tickets Winners",
    arxiv="1911.11134",
    year=2020,
)
register(_A, "erk-plus", f"{_HERE}.erk:ERKPlus", **_RANDOM)
register(
    _A,
    "gate-er",
    f"{_HERE}.gates:GateER",
    title="Efficient and effective training of sparse recurrent neural networks",
    year=2021,
    page="https://doi.org/10.1007/s00521-021-05727-y",
)
register(
    _A,
    "global",
    f"{_HERE}.whole:Global",
    title="The Emergence of Essential Sparsity in Large Pre-trained Models: The Weights that Matter",
    arxiv="2306.03805",
    year=2023,
)
register(
    _A,
    "owl",
    f"{_HERE}.owl:OWL",
    title="Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs to High Sparsity",
    arxiv="2310.05175",
    year=2024,
)
register(
    _A,
    "alpha",
    f"{_HERE}.alpha:AlphaPruning",
    title="AlphaPruning: Using Heavy-Tailed Self Regularization Theory for Improved Layer-wise Pruning of Large "
    "Language Models",
    arxiv="2410.10912",
    year=2024,
)
register(_A, "explicit", f"{_HERE}.explicit:Explicit", title="Sparsities given by hand")


def parse(value: str | Mapping[str, float] | Allocation) -> Allocation:
    """Read an allocation as it is given to training: a name, the sparsity of every layer by name, or the object.

    Raises:
        RecipeError: the name is unknown, or the value is none of these.

    Example:
        >>> parse("erk")
        ERK(power=1.0)
    """
    if isinstance(value, Allocation):
        return value
    if isinstance(value, str):
        return cast(Allocation, registry.find(_A, value).load()())
    if isinstance(value, Mapping):
        return Named(value)
    raise RecipeError(
        "allocation must be a name, a mapping from layers to sparsities or an allocation such as "
        f"lowdim.core.allocation.OWL(m=5); got {value!r}"
    )


def counts_for(
    shapes: Mapping[str, Sequence[int]],
    allocation: str | Mapping[str, float] | Allocation,
    sparsity: float | None,
) -> dict[str, int]:
    """Return how many weights each layer keeps where nothing but the shapes is known.

    Args:
        shapes: the weights' shapes by name, in model order.
        allocation: as for `parse`.
        sparsity: share of zeros over all layers. With sparsities by name it may be None; else they must meet
            it to one weight per layer.

    Raises:
        RecipeError: the allocation reads weights, the names are not exactly the layers, or the budget is impossible.

    Example:
        >>> counts_for({"in": (300, 784), "mid": (100, 300), "head": (10, 100)}, "erk", 0.9)
        {'in': 18714, 'mid': 6906, 'head': 1000}
    """
    found = parse(allocation)
    if found.reads_weights:
        raise RecipeError(
            f"allocation {found} reads dense weights, and only their shapes are known here. Use one of shapes alone, "
            "such as erk, or give the sparsity of every layer by name"
        )
    return found.counts(layers_of(shapes), sparsity, lambda: iter(()))
