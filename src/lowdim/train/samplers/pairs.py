"""Pairs within a class: a partner that is less spurious, and one that is as spurious."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lowdim.core.errors import RecipeError
from lowdim.core.lazy import torch
from lowdim.core.settings import count
from lowdim.train.objectives.base import Memory, Samples
from lowdim.train.samplers.base import Sampler

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class Pairs(Sampler):
    """Draws with every sample, the anchor, two of its class: a positive of higher rank and a negative of the same.

    An anchor of rank r has a positive of rank min(r + ``gap``, the last rank of its class), or of the next rank above
    that has samples; anchors of the last rank have one of that rank. Both partners are drawn evenly among the other
    samples of their rank. The anchor is its own partner only where it is alone in that rank.

    From "Sebra: Debiasing through Self-Guided Bias Ranking", ICLR 2025, arXiv 2501.18277, whose gaps are 2 to 5.

    Args:
        gap: ranks between anchor and positive.

    Example:
        >>> import torch
        >>> from lowdim.data.select.ranks import Ranks
        >>> y = torch.zeros(3, dtype=torch.int64)
        >>> ranks = Ranks(torch.tensor([1, 1, 3]), y, ("a",), data="", method="", settings={})
        >>> crowd = Samples(torch.zeros(3, 1), y, classes=1, ranks=ranks)
        >>> rows = Pairs(gap=1).order(crowd, {}, 0, 1, torch.Generator().manual_seed(0))
        >>> sorted(rows[:, :2].tolist())  # the only rank above 1 is 3
        [[0, 2], [1, 2], [2, 2]]
    """

    pairs: ClassVar[bool] = True

    gap: int = count(2)

    @property
    def requires(self) -> frozenset[str]:
        """Ranks."""
        return frozenset({"ranks"})

    def begin(self, samples: Samples) -> Memory:
        """Refuse ranks that leave nothing to contrast.

        Raises:
            RecipeError: every class has one rank alone.
        """
        assert samples.ranks is not None
        if all(len(samples.ranks.rank[samples.y == c].unique()) < 2 for c in samples.y.unique()):
            raise RecipeError(
                "sampler 'pairs' contrasts ranks, and every class has one rank alone. Rank with other settings"
            )
        return {}

    def order(self, samples: Samples, memory: Memory, epoch: int, epochs: int, draw: Generator) -> Tensor:
        """Return [anchors, 3]: anchor, positive, negative."""
        assert samples.ranks is not None
        anchors = torch.randperm(len(samples), generator=draw)
        chances = torch.rand(len(samples), 2, generator=draw)
        found = torch.stack([anchors, anchors, anchors], 1)
        rank_of = samples.ranks.rank
        y, ranks = samples.y[anchors], rank_of[anchors]
        for c in samples.y.unique():
            mine = (samples.y == c).nonzero().flatten()
            members = {int(r): mine[rank_of[mine] == r] for r in rank_of[mine].unique()}
            levels = torch.tensor(list(members))
            for rank, same in members.items():
                wanted = min(rank + self.gap, int(levels[-1]))
                above = members[int(levels[torch.searchsorted(levels, wanted)])]
                at = ((y == c) & (ranks == rank)).nonzero().flatten()
                found[at, 1] = _others(above, anchors[at], chances[at, 0])
                found[at, 2] = _others(same, anchors[at], chances[at, 1])
        return found


def _others(rows: Tensor, anchors: Tensor, chances: Tensor) -> Tensor:
    """Return for each anchor one of ``rows``, which ascend, drawn evenly by a chance in [0, 1) among the others."""
    place = torch.searchsorted(rows, anchors)
    own = rows[place.clamp_max(len(rows) - 1)] == anchors
    drawn = (chances * (len(rows) - own.long())).long()
    drawn += own & (drawn >= place)  # pass over the anchor
    return rows[drawn.clamp_max(len(rows) - 1)]
