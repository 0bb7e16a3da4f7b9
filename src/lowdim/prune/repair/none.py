"""No repair: the kept weights stay as they are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NoRepair:
    """Leave the kept weights as they are, as magnitude pruning and Wanda do."""
