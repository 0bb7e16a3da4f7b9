"""What a selector is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowdim.core.settings import Settings

if TYPE_CHECKING:
    from torch import nn

    from lowdim.data.classification import Dataset
    from lowdim.data.select.ranks import Ranks


@dataclass(frozen=True)
class Selector(Settings, ABC):
    """Ranks the training samples of a data set within their class, from samples and classes alone.

    A subclass is a frozen dataclass of its method's settings. What it may see is a `Dataset`, which knows no group and
    no planted cue; nothing that it chooses may depend on more.
    """

    @abstractmethod
    def rank(self, model: nn.Module, data: Dataset, *, seed: int = 0) -> Ranks:
        """Rank ``data.train``.

        Args:
            model: maps a batch of samples to logits [samples, classes]; what a selector trains is this one, in place.
            data: whose training samples are ranked.
            seed: of every draw.

        Returns:
            A rank of each training sample within its class, from 1, in the order of ``data.train``.

        Raises:
            DataError: the samples cannot be ranked; says why.
        """
