"""EL2N: the length of the error vector, early in training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowdim.train.selection.difficulty import Difficulty, Score


@dataclass(frozen=True)
class EL2N(Difficulty):
    """The score is |p - onehot(y)|_2 after ``epochs`` epochs, a mean over ``networks`` networks.

    Papers: "Deep Learning on a Data Diet: Finding Important Examples Early in Training", 2021, arXiv 2107.07075,
    which takes ten networks after 10 to 20 of 200 epochs; "Are Sparse Neural Networks Better Hard Sample Learners?",
    BMVC 2024, arXiv 2409.09196, trains sparse networks on the hardest by it.

    Example:
        >>> score = EL2N().begin(2)
        >>> score.see(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))
        >>> score.value()
        tensor([0.0000, 1.4142])
    """

    @property
    def title(self) -> str:
        """el2n."""
        return "el2n"

    def begin(self, samples: int) -> Score:
        """Return what keeps the last error."""
        return _Last()


class _Last(Score):
    _value: Tensor

    def see(self, p: Tensor, y: Tensor) -> None:
        self._value = (p - torch.nn.functional.one_hot(y, p.shape[1])).norm(dim=1)

    def value(self) -> Tensor:
        return self._value
