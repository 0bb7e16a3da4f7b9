"""Objectives that give every sample a weight before training begins."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lowdim.train.objectives.base import Drawn, Reweighted, Samples

if TYPE_CHECKING:
    from torch import Tensor

By = Literal["loss", "sampling"]


@dataclass(frozen=True)
class Weighted(Reweighted):
    """Weights that stand for the whole run.

    Args:
        over: the objective whose losses are weighed.
        by: "loss" multiplies losses, the mean weight of all samples made 1; "sampling" draws as many samples as there
            are, with replacement, each with a probability in proportion to its weight. Where all weigh the same, every
            sample is trained on once an epoch, as without weights.
    """

    by: By = field(default="loss", kw_only=True)

    @property
    def draws(self) -> bool:
        """Whether samples are drawn by their weights."""
        return self.by == "sampling"

    @abstractmethod
    def weights(self, samples: Samples) -> Tensor:
        """Return the weight of every sample, fp32 [samples]."""

    def mean(self, outputs: Any, batch: Drawn) -> Tensor:
        """Return the mean of the objective below: where samples are drawn by weight, or all weigh the same."""
        return self.below.mean(outputs, batch)
