"""Confidence: how unsure networks are of a sample's class, over all epochs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowdim.train.selection.difficulty import Difficulty, Score


@dataclass(frozen=True)
class Confidence(Difficulty):
    """The score is 1 minus the mean probability of the sample's class over all epochs and networks.

    Paper: "Dataset Cartography: Mapping and Diagnosing Datasets with Training Dynamics", EMNLP 2020, arXiv 2009.10795,
    whose confidence is that mean.

    Example:
        >>> score = Confidence().begin(1)
        >>> score.see(torch.tensor([[0.5, 0.5]]), torch.tensor([0]))
        >>> score.see(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
        >>> score.value()
        tensor([0.2500])
    """

    @property
    def title(self) -> str:
        """Confidence."""
        return "confidence"

    def begin(self, samples: int) -> Score:
        """Return what sums up probabilities."""
        return _Mean(samples)


class _Mean(Score):
    def __init__(self, samples: int) -> None:
        self._sum, self._seen = torch.zeros(samples), 0

    def see(self, p: Tensor, y: Tensor) -> None:
        self._sum += p.gather(1, y.unsqueeze(1)).squeeze(1)
        self._seen += 1

    def value(self) -> Tensor:
        return 1 - self._sum / self._seen
