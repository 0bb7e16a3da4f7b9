"""What an objective of a classifier is: which samples come when, and the loss of each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lowdim.core.random import generator
from lowdim.core.settings import Settings
from lowdim.data.select.groups import Groups
from lowdim.data.select.ranks import Ranks


@dataclass(frozen=True, eq=False)
class Samples:
    """All that an objective may see of the training samples.

    Attributes:
        x: the samples, [samples, ...].
        y: their classes, int64 [samples], on the same device.
        classes: how many classes there are.
        seed: of every draw.
        groups: group labels, for objectives that need them.
        ranks: ranks of these samples, for objectives that need them.
    """

    x: Tensor
    y: Tensor
    classes: int
    seed: int = 0
    groups: Groups | None = None
    ranks: Ranks | None = None


@dataclass(frozen=True)
class Objective(Settings, ABC):
    """What a classifier is trained for; a subclass is a frozen dataclass of its paper's settings.

    Attributes:
        needs: what `Samples` must hold beside the samples.
    """

    needs: ClassVar[Literal["nothing", "groups", "ranks"]] = "nothing"

    @abstractmethod
    def begin(self, samples: Samples, net: nn.Module) -> Goal:
        """Return this objective for some samples and a network.

        Raises:
            DataError: the samples, their groups or their ranks do not fit.
        """


class Goal(ABC):
    """An objective in training: its sampler, its loss, and what both remember. A `lowdim.train.loop.Loop` keeps it.

    Args:
        samples: what is trained on.
    """

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def order(self, epoch: int) -> Tensor:
        """Return which samples an epoch takes, and in which order, int64; by default each of them once.

        It depends on the seed, the epoch and what `state_dict` returns, so that a resumed epoch is the same.
        """
        count = len(self.samples.y)
        return torch.randperm(count, generator=generator(self.samples.seed, "data", "order", epoch))

    def batches(self, epoch: int, most: int) -> Iterator[Tensor]:
        """Return the rows of each batch of an epoch: batches of equal size, up to one, of at most ``most`` samples."""
        rows = self.order(epoch)
        yield from rows.tensor_split(max(1, -(-len(rows) // most)))

    @abstractmethod
    def losses(self, net: nn.Module, rows: Tensor) -> Tensor:
        """Return the loss of each sample of a batch, with its gradient, fp32 [rows]; the mean is what is trained."""

    def loss(self, net: nn.Module, rows: Tensor) -> Tensor:
        """Return what is trained, as a `Loop` takes it."""
        return self.losses(net, rows).mean()

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Go on where a ``state_dict`` was taken."""
