"""REST: samples that contradict a bias weigh more, in a network that is sparse from its first step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from lowdim.core.errors import RecipeError
from lowdim.core.lazy import torch
from lowdim.core.settings import within
from lowdim.train.objectives.base import Samples
from lowdim.train.objectives.weighted import By, Weighted

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class REST(Weighted):
    """A sample weighs ``up`` where it conflicts with the bias, 1 where it is aligned; the masks are the recipe's.

    Of n_c conflicting and n_a aligned samples a share of ``up`` n_c / (``up`` n_c + n_a) is drawn from the former: 50
    of 10,000 at 80 are 0.287 of what is trained on. Which samples conflict is known from labels of groups, or from
    ranks of spuriosity, of which the latest of a class conflict.

    Paper: "REST: Enhancing Group Robustness in DNNs through Reweighted Sparse Training", ECML 2023, arXiv 2312.03044,
    with 10, 30, 50 and 80 beside 0.5, 1, 2 and 5% conflicting samples; SGD with momentum, batch 256, RigL-like updates
    (drop 0.5, cosine) every 1000 steps over ERK.

    Args:
        up: lambda, the weight of conflicting samples.
        over: the objective whose losses are weighed.
        by: "sampling", as the paper's code does, or "loss", which has the same expectation.

    Example:
        >>> import torch
        >>> crowd = Samples(torch.zeros(10_000, 1), torch.zeros(10_000), 1, conflicting=torch.arange(10_000) < 50)
        >>> weights = REST(up=80).weights(crowd)
        >>> round(float(weights[:50].sum() / weights.sum()), 3)
        0.287
    """

    needs: ClassVar[frozenset[str]] = frozenset({"groups"})

    up: float = within(80.0, above=0)
    by: By = field(default="sampling", kw_only=True)

    def weights(self, samples: Samples) -> Tensor:
        """Return the weight of every sample, fp32 [samples].

        Raises:
            RecipeError: no sample conflicts with the bias.
        """
        if samples.conflicting is None:
            raise RecipeError("REST needs to know which samples conflict with a bias: give Samples.conflicting")
        if not bool(samples.conflicting.any()):
            raise RecipeError(
                "objective 'rest' weighs samples that conflict with a bias, and of those to train on none does. "
                "Raise data.limit, or choose objective: erm"
            )
        return torch.where(samples.conflicting, self.up, 1.0)
