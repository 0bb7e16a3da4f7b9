"""What every rule for the masks of a recovering model answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lowdim.core.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from lowdim.core.pattern import Pattern
    from lowdim.train.nm.riders import MaskRider


@dataclass(frozen=True)
class Start:
    """What a rule begins with.

    Attributes:
        parameters: by name, the pruned weights.
        masks: by the same names, which of them are kept, bool.
        pattern: what masks must be like.
        optimizer: that trains the weights.
        total_steps: of the run.
        scales: measures, when asked, the root mean square of each weight's inputs, fp32 [in] by name.
        transposed: names of weights that are [in, out].
    """

    parameters: Mapping[str, nn.Parameter]
    masks: Mapping[str, Tensor]
    pattern: Pattern
    optimizer: Optimizer
    total_steps: int
    scales: Callable[[], Mapping[str, Tensor]]
    transposed: Collection[str] = ()


@dataclass(frozen=True)
class MaskRule(Settings, ABC):
    """Says what becomes of the masks.

    Attributes:
        moves: whether masks move, so that pruned weights begin with dense values.
    """

    moves: ClassVar[bool] = False

    @abstractmethod
    def ride(self, start: Start) -> MaskRider:
        """Let the masks ride on an optimizer."""

    def beside(self) -> Mapping[str, Any]:
        """Return the settings of what stands beside pruned layers, for `lowdim.nn.slorb.add_slorb`; none if nothing."""
        return {}
