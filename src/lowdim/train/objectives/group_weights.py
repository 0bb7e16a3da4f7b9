"""Group reweighting: every group counts as much as any other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lowdim.train.objectives.base import Samples
from lowdim.train.objectives.weighted import Weighted

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class GroupWeights(Weighted):
    """The weight of a sample is w_i = n / (G n_g), n_g the samples of its group, G the groups that have any.

    Every group's weights sum to n / G. Studied against drawing a balanced subset in "An Investigation of Why
    Overparameterization Exacerbates Spurious Correlations", 2020, arXiv 2005.04345.

    Args:
        over: the objective whose losses are weighed.
        by: "loss" or "sampling"; see `Weighted`.

    Example:
        >>> import torch
        >>> from lowdim.data.select.groups import Groups
        >>> groups = Groups(torch.tensor([0, 0, 0, 1]), ("a", "b"))
        >>> crowd = Samples(torch.zeros(4, 1), torch.zeros(4), classes=1, groups=groups)
        >>> [round(weight, 4) for weight in GroupWeights().weights(crowd).tolist()]
        [0.6667, 0.6667, 0.6667, 2.0]
    """

    needs: ClassVar[frozenset[str]] = frozenset({"groups"})

    def weights(self, samples: Samples) -> Tensor:
        """Return the weight of every sample, fp32 [samples]."""
        counts = samples.counts()
        return len(samples) / (int((counts > 0).sum()) * counts[samples.index].float())
