"""Forgetting: how often a network got a sample right and then wrong again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lowdim.core.lazy import torch
from lowdim.core.settings import count
from lowdim.train.selection.difficulty import Difficulty, Seen

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Forgetting(Difficulty):
    """The score is the number of epochs after which a sample is wrong that was right before; never right is the most.

    A sample that no epoch got right scores ``epochs``, more than any other can have. The paper looks at a sample
    whenever its batch is trained on; this looks at all of them after each epoch, in evaluation mode.

    Paper: "An Empirical Study of Example Forgetting during Deep Neural Network Learning", ICLR 2019, arXiv 1812.05159.

    Attributes:
        networks: copies that are trained.
        epochs: of each.
        batch: samples of a step at most.
        lr: learning rate, constant.

    Example:
        >>> seen, y = {}, torch.tensor([0, 0])
        >>> for p in ([0.9, 0.1], [0.1, 0.9], [0.9, 0.1]):
        ...     Forgetting().see(seen, torch.tensor([p, [0.1, 0.9]]), y)
        >>> Forgetting().score(seen)
        tensor([1., 3.])
    """

    name: ClassVar[str] = "forgetting"

    epochs: int = count(10, least=2)

    def see(self, seen: Seen, p: Tensor, y: Tensor) -> None:
        """Count the samples that are wrong now and were right before."""
        right = p.argmax(1) == y
        none = torch.zeros_like(right)
        before, ever, forgotten = (seen.get(name, none) for name in ("before", "ever", "forgotten"))
        seen["forgotten"], seen["ever"] = forgotten.float() + (before & ~right), ever | right
        seen["before"], seen["epochs"] = right, seen.get("epochs", 0) + 1

    def score(self, seen: Seen) -> Tensor:
        """Return the counts, in [0, epochs]."""
        return torch.where(seen["ever"], seen["forgotten"], float(seen["epochs"]))
