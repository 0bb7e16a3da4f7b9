"""Ranks by difficulty: how far networks are from a sample's class early on, or how often they forget it."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lowdim.core.settings import count, within
from lowdim.data.classification import Dataset
from lowdim.train.selection.base import TrainedSelector

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lowdim.train.selection.grading import Grading

Seen = dict[str, Any]


@dataclass(frozen=True)
class Difficulty(TrainedSelector):
    """Ranks the samples of each class from the easiest, 1, to the hardest, by a score that networks in training give.

    ``networks`` copies of the model are trained one after another, plainly, with SGD of momentum 0.9; the first from
    the model's own weights, the others from weights drawn anew. Scores are means over the copies, in evaluation mode.
    Samples of one score share a rank. The model is left as it was.

    Attributes:
        networks: copies that are trained.
        epochs: of each.
        batch: samples of a step at most.
        lr: learning rate, constant.
    """

    ends: ClassVar[tuple[str, str]] = ("easiest", "hardest")
    rated: ClassVar[bool] = False

    networks: int = count(3)
    epochs: int = count(5)
    batch: int = count(128, least=2)
    lr: float = within(0.05, above=0)

    name: ClassVar[str]
    """What the score is called among the values of the ranks."""

    @abstractmethod
    def see(self, seen: Seen, p: Tensor, y: Tensor) -> None:
        """Look at a network's probabilities after an epoch.

        Args:
            seen: what is remembered of the network, empty at first; tensors and numbers, saved with the ranking.
            p: fp32 [samples, classes].
            y: int64 [samples].
        """

    @abstractmethod
    def score(self, seen: Seen) -> Tensor:
        """Return how hard a network found each sample, fp32 [samples]."""

    def begin(self, model: nn.Module, data: Dataset, *, seed: int = 0) -> Grading:
        """Return the ranking before its first epoch; ``epochs`` of every network."""
        from lowdim.train.selection.grading import Grading

        return Grading(self, model, data, seed)
