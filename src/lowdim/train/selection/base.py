"""A selector that ranks by training: epoch by epoch, so that it can be watched, saved and gone on with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lowdim.core.settings import count, within
from lowdim.data.classification import Dataset
from lowdim.data.errors import DataError
from lowdim.data.select.base import Selector
from lowdim.data.select.ranks import Ranks

if TYPE_CHECKING:
    from torch import nn


class Ranking(ABC):
    """A ranking under way.

    Attributes:
        epoch: epochs done.
    """

    epoch: int = 0

    @property
    @abstractmethod
    def ended(self) -> str:
        """Why no epoch follows; empty while one does."""

    @abstractmethod
    def train_epoch(self) -> None:
        """Train an epoch, and rank what it tells."""

    @abstractmethod
    def ranks(self, names: Sequence[str] = ()) -> Ranks:
        """Return the ranks as they are; samples that have none come last.

        Args:
            names: of the samples.

        Raises:
            DataError: there are none.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a ``state_dict`` was taken."""


@dataclass(frozen=True)
class TrainedSelector(Selector):
    """Ranks by training.

    Attributes:
        ends: what the samples of the first and of the last ranks are called.
        rated: whether ``lowdim rank`` chooses the learning rate by the network that is trained, where none is given.
        epochs: at most.
        lr: learning rate.
    """

    ends: ClassVar[tuple[str, str]] = ("most spurious", "least spurious")
    rated: ClassVar[bool] = True

    epochs: int = count(40)
    lr: float = within(1e-4, above=0)

    @abstractmethod
    def begin(self, model: nn.Module, data: Dataset, *, seed: int = 0) -> Ranking:
        """Return the ranking before its first epoch; see `rank`."""

    def rank(
        self, model: nn.Module, data: Dataset, *, seed: int = 0, told: Callable[[int], None] | None = None
    ) -> Ranks:
        """Rank ``data.train``, and train ``model`` meanwhile.

        Args:
            model: maps a batch of samples to logits [samples, classes].
            data: whose training samples are ranked.
            seed: of the order of the samples.
            told: called after every epoch with the epochs done.

        Raises:
            DataError: the samples cannot be ranked; says why.
        """
        ranking = self.begin(model, data, seed=seed)
        while not ranking.ended:
            ranking.train_epoch()
            if told is not None:
                told(ranking.epoch)
        return ranking.ranks()


def check_samples(data: Dataset) -> None:
    """Refuse training samples that cannot be ranked.

    Raises:
        DataError: values that are not finite, counted and the first named, or one class alone.
    """
    x, y = data.train
    if x.is_floating_point() and not bool((finite := x.isfinite().flatten(1).all(1)).all()):
        row = int((~finite).nonzero()[0])
        raise DataError(
            f"{int((~finite).sum())} of {len(y)} samples hold values that are not finite, the first is sample {row}. "
            "Remove or fill them."
        )
    present = y.unique()
    if len(present) < 2:
        raise DataError(f"all samples are of class {data.classes[int(present[0])]!r}: there is nothing to tell apart")
