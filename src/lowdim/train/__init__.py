"""Sparse training: two lines in any loop.

Each name that ``__init__.pyi`` lists is loaded when it is first used.
"""

from __future__ import annotations

from lowdim.core.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__)
