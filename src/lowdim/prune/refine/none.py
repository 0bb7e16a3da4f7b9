"""No refinement: the mask stays as it was drawn."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NoRefine:
    """Keep the mask that the score, the pattern and the allocation gave."""
