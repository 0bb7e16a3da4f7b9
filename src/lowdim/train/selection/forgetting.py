"""Forgetting: how often a network got a sample right and then wrong again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowdim.core.settings import count
from lowdim.train.selection.difficulty import Difficulty, Score


@dataclass(frozen=True)
class Forgetting(Difficulty):
    """The score is the number of epochs after which a sample is wrong that was right before; never right is the most.

    A sample that no epoch got right scores ``epochs``, more than any other can have. The paper looks at a sample
    whenever its batch is trained on; this looks at all of them after each epoch, in evaluation mode.

    Paper: "An Empirical Study of Example Forgetting during Deep Neural Network Learning", ICLR 2019, arXiv 1812.05159.

    Args:
        networks: copies that are trained.
        epochs: of each.
        batch: samples of a step at most.
        lr: learning rate, constant.

    Example:
        >>> score, y = Forgetting(epochs=3).begin(2), torch.tensor([0, 0])
        >>> for p in ([0.9, 0.1], [0.1, 0.9], [0.9, 0.1]):
        ...     score.see(torch.tensor([p, [0.1, 0.9]]), y)
        >>> score.value()
        tensor([1., 3.])
    """

    epochs: int = count(10, least=2)

    @property
    def title(self) -> str:
        """Forgetting."""
        return "forgetting"

    def begin(self, samples: int) -> Score:
        """Return what counts."""
        return _Count(samples)


class _Count(Score):
    def __init__(self, samples: int) -> None:
        self._forgotten, self._before = torch.zeros(samples), torch.zeros(samples, dtype=torch.bool)
        self._ever, self._seen = self._before.clone(), 0

    def see(self, p: Tensor, y: Tensor) -> None:
        right = p.argmax(1) == y
        self._forgotten += self._before & ~right
        self._before, self._ever = right, self._ever | right
        self._seen += 1

    def value(self) -> Tensor:
        return torch.where(self._ever, self._forgotten, float(self._seen))
