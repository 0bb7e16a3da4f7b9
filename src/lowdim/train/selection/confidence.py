"""Confidence: how unsure networks are of a sample's class, over all epochs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lowdim.core.lazy import torch
from lowdim.train.selection.difficulty import Difficulty, Seen

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Confidence(Difficulty):
    """The score is 1 minus the mean probability of the sample's class over all epochs and networks.

    Paper: "Dataset Cartography: Mapping and Diagnosing Datasets with Training Dynamics", EMNLP 2020, arXiv 2009.10795,
    whose confidence is that mean.

    Attributes:
        networks: copies that are trained.
        epochs: of each.
        batch: samples of a step at most.
        lr: learning rate, constant.

    Example:
        >>> seen, y = {}, torch.tensor([0])
        >>> Confidence().see(seen, torch.tensor([[0.5, 0.5]]), y)
        >>> Confidence().see(seen, torch.tensor([[1.0, 0.0]]), y)
        >>> Confidence().score(seen)
        tensor([0.2500])
    """

    name: ClassVar[str] = "confidence"

    def see(self, seen: Seen, p: Tensor, y: Tensor) -> None:
        """Add up the probabilities of the samples' classes."""
        own = p.gather(1, y.unsqueeze(1)).squeeze(1)
        seen["sum"] = own + seen.get("sum", torch.zeros_like(own))
        seen["epochs"] = seen.get("epochs", 0) + 1

    def score(self, seen: Seen) -> Tensor:
        """Return 1 minus their mean, in [0, 1]."""
        found: Tensor = 1 - seen["sum"] / seen["epochs"]
        return found
