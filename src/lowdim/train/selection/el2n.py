"""EL2N: the length of the error vector, early in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lowdim.core.lazy import torch
from lowdim.train.selection.difficulty import Difficulty, Seen

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class EL2N(Difficulty):
    """The score is |p - onehot(y)|_2 after ``epochs`` epochs, a mean over ``networks`` networks.

    Papers: "Deep Learning on a Data Diet: Finding Important Examples Early in Training", 2021, arXiv 2107.07075,
    which takes ten networks after 10 to 20 of 200 epochs; "Are Sparse Neural Networks Better Hard Sample Learners?",
    BMVC 2024, arXiv 2409.09196, trains sparse networks on the hardest by it.

    Attributes:
        networks: copies that are trained.
        epochs: of each.
        batch: samples of a step at most.
        lr: learning rate, constant.

    Example:
        >>> seen = {}
        >>> EL2N().see(seen, torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))
        >>> EL2N().score(seen)
        tensor([0.0000, 1.4142])
    """

    name: ClassVar[str] = "el2n"

    def see(self, seen: Seen, p: Tensor, y: Tensor) -> None:
        """Remember the error of this epoch alone."""
        seen["error"] = (p - torch.nn.functional.one_hot(y, p.shape[1])).norm(dim=1)

    def score(self, seen: Seen) -> Tensor:
        """Return the last error, in [0, sqrt(2)]."""
        error: Tensor = seen["error"]
        return error
