"""JTT: train once for a short time, then again with more weight on what the first network got wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lowdim.core.errors import RecipeError
from lowdim.core.lazy import torch
from lowdim.core.settings import count, within
from lowdim.train.objectives.base import Samples
from lowdim.train.objectives.weighted import By, Weighted

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class JTT(Weighted):
    """A sample weighs ``up`` where a dense network trained plainly for ``epochs`` epochs gets it wrong, else 1.

        J(theta) = up sum_{i in E} l_i + sum_{i not in E} l_i,    E = {i: argmax f_first(x_i) != y_i}

    The first network is the recipe's, without masks, with its optimizer and the rates of a run of ``epochs`` epochs;
    E is what it gets wrong in evaluation mode. No group label is looked at.

    Paper: "Just Train Twice: Improving Group Robustness without Training Group Information", ICML 2021, arXiv
    2107.09044: ``epochs`` 60 and ``up`` 100 for Waterbirds, 1 and 50 for CelebA, 2 and 6 for MultiNLI, both chosen on
    the worst group of a labelled validation set.

    Args:
        epochs: T, of the first network.
        up: lambda_up, the weight of its errors.
        over: the objective whose losses are weighed.
        by: "sampling" draws as many samples as there are in proportion to their weights; the authors' code repeats
            errors ``up`` times, which makes epochs longer and has the same shares. "loss" is the equation.

    Example:
        >>> import torch
        >>> crowd = Samples(torch.zeros(3, 1), torch.tensor([0, 0, 1]), 2, wrong=torch.tensor([False, True, False]))
        >>> JTT(up=50).weights(crowd).tolist()
        [1.0, 50.0, 1.0]
    """

    epochs: int = count(1)
    up: float = within(50.0, above=0)
    by: By = field(default="sampling", kw_only=True)

    @property
    def early(self) -> int:
        """Epochs of the first network."""
        return self.epochs

    def weights(self, samples: Samples) -> Tensor:
        """Return the weight of every sample, fp32 [samples].

        Raises:
            RecipeError: the first network got nothing wrong.
        """
        assert samples.wrong is not None
        if not bool(samples.wrong.any()):
            raise RecipeError(
                f"objective 'jtt' weighs the errors of a first network, which made none after {self.epochs} epochs. "
                "Lower objective.epochs, or choose objective: erm"
            )
        return torch.where(samples.wrong, self.up, 1.0)
