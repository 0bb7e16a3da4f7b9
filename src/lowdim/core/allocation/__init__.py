"""Allocations: how much of one budget each layer gets."""

from __future__ import annotations

from lowdim.core.allocation.alpha import AlphaPruning
from lowdim.core.allocation.base import Allocation, AllocationResult, LayerInfo, Scan, ScannedLayer
from lowdim.core.allocation.er import ER, ERPlus
from lowdim.core.allocation.explicit import Explicit
from lowdim.core.allocation.owl import OWL
from lowdim.core.allocation.uniform import Uniform
from lowdim.core.allocation.whole import Global
from lowdim.core.registry import register

__all__ = [
    "ER",
    "OWL",
    "Allocation",
    "AllocationResult",
    "AlphaPruning",
    "ERPlus",
    "Explicit",
    "Global",
    "LayerInfo",
    "Scan",
    "ScannedLayer",
    "Uniform",
]

_HERE = "lowdim.core.allocation"
_A = "allocation"
register(_A, "uniform", f"{_HERE}.uniform:Uniform", title="The same for every layer")
register(_A, "er", f"{_HERE}.er:ER", title="Erdos-Renyi", arxiv="1707.04780", year=2018)
register(_A, "er-plus", f"{_HERE}.er:ERPlus", title="Erdos-Renyi plus", arxiv="2202.02643", year=2022)
register(
    _A, "global", f"{_HERE}.whole:Global", title="One threshold for the model", arxiv="2306.03805", year=2023
)
register(_A, "owl", f"{_HERE}.owl:OWL", title="Outlier weighed layerwise", arxiv="2310.05175", year=2024)
register(_A, "alpha", f"{_HERE}.alpha:AlphaPruning", title="AlphaPruning", arxiv="2410.10912", year=2024)
register(_A, "explicit", f"{_HERE}.explicit:Explicit", title="Sparsities given by hand")
