"""No repair: the kept weights stay as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowdim.prune.repair.base import Repair

if TYPE_CHECKING:
    from lowdim.prune.bench import Bench


@dataclass(frozen=True)
class NoRepair(Repair):
    """Leave the kept weights as they are, as magnitude pruning and Wanda do."""

    def apply(self, bench: Bench) -> None:
        """Set the pruned weights to zero."""
        for work in bench.works:
            work.result = work.dense * work.kept
