"""Which samples an epoch trains on, and in what order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lowdim.core.errors import RecipeError
from lowdim.core.settings import Settings
from lowdim.train.objectives.base import Memory, Objective, Samples

if TYPE_CHECKING:
    from torch import Generator, Tensor

Losses = Callable[["Tensor", "Tensor"], "Tensor"]
"""(x, y) -> the network's losses on examples as it is now, in evaluation mode, without gradients."""


@dataclass(frozen=True)
class Sampler(Settings, ABC):
    """Says which samples an epoch draws. Subclasses are frozen dataclasses of a paper's hyper-parameters.

    Attributes:
        pairs: whether each sample comes with partners.
        even: whether it draws every sample once an epoch, so that an objective may say what else is drawn.
    """

    pairs: ClassVar[bool] = False
    even: ClassVar[bool] = False

    @property
    def listens(self) -> bool:
        """Whether it goes by what the network makes of the samples, so that each network draws others."""
        return False

    @property
    def requires(self) -> frozenset[str]:
        """What has to be known of the samples: "groups" or "ranks"."""
        return frozenset()

    def check_kind(self, kind: str) -> None:
        """Refuse a kind of data ("image", "table", "text") whose samples cannot be drawn so.

        Raises:
            RecipeError: names the setting and the remedy.
        """

    def check_length(self, epochs: int) -> None:
        """Refuse a number of epochs in which the sampler can do nothing.

        Raises:
            RecipeError: names the setting and the remedy.
        """

    def scans(self, epochs: int) -> int:
        """Return how often `prepare` passes forward over all samples in a run of so many epochs."""
        return 0

    def begin(self, samples: Samples) -> Memory:
        """Return what the sampler remembers, as it is before the first epoch; saved with the run.

        Raises:
            RecipeError: the samples are not such as can be drawn from.
        """
        return {}

    def size(self, samples: int, epoch: int, epochs: int) -> int:
        """Return how many samples an epoch draws, counted from 0, of a run of so many epochs."""
        return samples

    @abstractmethod
    def order(self, samples: Samples, memory: Memory, epoch: int, epochs: int, draw: Generator) -> Tensor:
        """Return the rows of an epoch in their order, int64 [drawn]; or [drawn, 1 + partners] where ``pairs``.

        ``draw`` depends on the seed and the epoch alone.
        """

    def prepare(self, samples: Samples, memory: Memory, epoch: int, epochs: int, losses: Losses) -> None:
        """Look at the samples with the network, before the epoch's `order`; nothing is looked at by default."""

    def shown(self, x: Tensor, rows: Tensor, memory: Memory) -> Tensor:
        """Return what the network is shown of some samples: all of them by default."""
        return x

    def told(self, rows: Tensor, losses: Tensor, memory: Memory) -> None:
        """Hear the losses of the samples of a step, fp32 [samples], as they were before it."""

    def report(self, memory: Memory) -> dict[str, float]:
        """Return what is to be put on the curve after an epoch, by name."""
        return {}


def check_together(objective: Objective, sampler: Sampler) -> None:
    """Refuse an objective and a sampler that exclude each other.

    Raises:
        RecipeError: both decide what is drawn, or one pairs samples and the other does not.
    """
    if objective.draws and not sampler.even:
        raise RecipeError(
            "this objective draws samples by their weights, and so does the sampler. "
            "Choose sampler: shuffled, or objective.by: loss."
        )
    paired = "pairs" in objective.requires
    if paired != sampler.pairs:
        raise RecipeError(
            "this objective contrasts pairs of samples, which the sampler does not draw. Choose sampler: pairs."
            if paired
            else "this sampler draws pairs of samples, which the objective makes nothing of. Choose sampler: shuffled."
        )
