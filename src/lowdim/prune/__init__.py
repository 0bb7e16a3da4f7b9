"""After training: stream through the blocks, collect statistics, allocate, mask, repair.

The package can be called: ``lowdim.prune(model, recipe)`` is `lowdim.prune.api.prune`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowdim.prune.api import PruneResult


class _Callable(ModuleType):
    """A module that prunes when called, so that the function and the room it lives in can share a name."""

    def __call__(self, *args: Any, **options: Any) -> PruneResult:
        from lowdim.prune.api import prune

        return prune(*args, **options)


sys.modules[__name__].__class__ = _Callable
