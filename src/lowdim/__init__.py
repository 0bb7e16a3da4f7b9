"""Sparse, low-rank, cheap neural networks, measured on your own machine.

Importing lowdim is cheap: each name below is loaded, and torch with it, when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowdim import train as train
    from lowdim.core.errors import LowdimError as LowdimError
    from lowdim.core.masks import Masks as Masks
    from lowdim.core.native import runtime_info as runtime_info
    from lowdim.evaluate.quality.perplexity import perplexity as perplexity
    from lowdim.infer.sparse.accelerate import accelerate as accelerate
    from lowdim.infer.sparse.linear import SparseLinear as SparseLinear
    from lowdim.infer.sparse.load import load as load
    from lowdim.prune.api import plan as plan
    from lowdim.prune.api import prune as prune
    from lowdim.prune.recipe import Recipe as Recipe

_EXPORTS = {
    "LowdimError": "lowdim.core.errors",
    "Masks": "lowdim.core.masks",
    "Recipe": "lowdim.prune.recipe",
    "SparseLinear": "lowdim.infer.sparse.linear",
    "accelerate": "lowdim.infer.sparse.accelerate",
    "load": "lowdim.infer.sparse.load",
    "perplexity": "lowdim.evaluate.quality.perplexity",
    "plan": "lowdim.prune.api",
    "runtime_info": "lowdim.core.native",
}

__all__ = [
    "LowdimError",
    "Masks",
    "Recipe",
    "SparseLinear",
    "accelerate",
    "load",
    "perplexity",
    "plan",
    "prune",
    "runtime_info",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in ("prune", "train"):  # packages; the first can be called, see lowdim/prune/__init__.py
        return importlib.import_module(f"lowdim.{name}")
    if name == "__version__":
        from importlib.metadata import version

        return version("lowdim")
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'lowdim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
