"""Group-DRO: the loss of the worst group, by weights of groups that follow their losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lowdim.core.lazy import torch
from lowdim.core.settings import within
from lowdim.train.objectives.base import Drawn, Memory, Reweighted, Samples

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class GroupDRO(Reweighted):
    """Minimises sum_g q_g L_g, L_g the mean loss of group g in the batch, 0 for one that is not in it.

        q_g <- q_g exp(step (L_g + adjust / sqrt(n_g))), then divided by their sum; before each step of the optimizer

    q begins equal over the groups that have samples; n_g is how many. The loss l_i of sample i is weighed as
    B q_g l_i / b_g, with b_g of the batch's B samples from its group, so that their mean is the sum above.

    Paper: "Distributionally Robust Neural Networks for Group Shifts: On the Importance of Regularization for Worst-Case
    Generalization", ICLR 2020, arXiv 1911.08731. It trains with strong weight decay or few epochs, and draws groups
    equally often: add ``sampler: weighted``.

    Args:
        step: eta_q, of the weights of groups.
        adjust: C of the generalisation adjustment.
        over: the objective whose losses are weighed.

    Example:
        >>> import torch
        >>> from lowdim.data.select.groups import Groups
        >>> x, y, index = torch.zeros(4, 1), torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 0, 1])
        >>> dro = GroupDRO(step=1.0)
        >>> memory = dro.begin(Samples(x, y, classes=2, groups=Groups(index, ("a", "b"))))
        >>> batch = Drawn(x, y, torch.arange(4), index, memory)
        >>> losses = dro.weighed(dro.loss(torch.zeros(4, 2), batch), batch)
        >>> [round(loss, 4) for loss in losses.tolist()]  # ln 2 = 0.6931 each, q = (1/2, 1/2)
        [0.4621, 0.4621, 0.4621, 1.3863]
    """

    needs: ClassVar[frozenset[str]] = frozenset({"groups"})

    step: float = within(0.01, least=0)
    adjust: float = within(0.0, least=0)

    def begin(self, samples: Samples) -> Memory:
        """Return equal weights of all groups that have samples, with their numbers, and what lies below."""
        counts = samples.counts()
        there = (counts > 0).double()
        return {**super().begin(samples), "q": there / there.sum(), "counts": counts}

    def weighed(self, losses: Tensor, batch: Drawn) -> Tensor:
        """Return the weighed losses, after the weights have followed them."""
        assert batch.groups is not None
        q, counts = batch.memory["q"], batch.memory["counts"]
        groups = batch.groups.cpu()
        inside = torch.bincount(groups, minlength=len(q))
        means = torch.zeros(len(q), dtype=torch.float64).index_add_(0, groups, losses.detach().double().cpu())
        means /= inside.clamp_min(1)
        if self.adjust:
            means += torch.where(counts > 0, self.adjust * counts.clamp_min(1) ** -0.5, 0.0)
        q = q * torch.exp(self.step * (means - means.max()))  # a common factor leaves with the sum
        batch.memory["q"] = q = q / q.sum()
        factors: Tensor = (len(groups) * q / inside.clamp_min(1))[groups]
        return losses * factors.to(losses)
