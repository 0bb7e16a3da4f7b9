"""Initial weights that depend on depth, the rivals of placements: norms stay where they are."""

from __future__ import annotations

from dataclasses import dataclass

from lowdim.core.errors import LowdimError
from lowdim.nn.placement.over import Over


@dataclass(frozen=True)
class Start(Over):
    """Sets the weights that an untrained network begins with, and changes nothing else: the model stays a stock one."""

    def check_start(self, trained: bool) -> None:
        """Refuse a network that has been trained."""
        super().check_start(trained)
        if trained:
            raise LowdimError(
                f"{type(self).__name__} sets the weights that training begins with, and the gains of the norms do not "
                "show that this network is untrained. Build it anew from its config"
            )
