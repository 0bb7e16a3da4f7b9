"""A share of every class by its ranks: the hardest samples, or the easiest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lowdim.core.budget import apportion
from lowdim.core.lazy import torch
from lowdim.core.random import generator
from lowdim.core.settings import within
from lowdim.core.topk import keep_top
from lowdim.train.objectives.base import Memory, Samples
from lowdim.train.samplers.base import Sampler

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class RankedShare(Sampler):
    """Trains on exactly round(share n) of n samples, the same in every epoch, of each class in proportion to its size.

    "hardest" are those of the highest ranks within their class, "easiest" those of the lowest, "random" any; of equal
    ranks some are drawn. With ranks of difficulty (selectors el2n, confidence, forgetting) this is the protocol of
    "Are Sparse Neural Networks Better Hard Sample Learners?", BMVC 2024, arXiv 2409.09196.

    Args:
        share: of the samples that are trained on.
        part: which of them.

    Example:
        >>> import torch
        >>> from lowdim.data.select.ranks import Ranks
        >>> y = torch.zeros(4, dtype=torch.int64)
        >>> ranks = Ranks(torch.tensor([1, 3, 2, 4]), y, ("a",), data="", method="", settings={})
        >>> crowd, sampler = Samples(torch.zeros(4, 1), y, classes=1, ranks=ranks), RankedShare(share=0.5)
        >>> memory = sampler.begin(crowd)
        >>> sampler.order(crowd, memory, 0, 1, torch.Generator().manual_seed(0)).sort().values
        tensor([1, 3])
    """

    share: float = within(0.5, above=0, most=1)
    part: Literal["hardest", "easiest", "random"] = "hardest"

    @property
    def requires(self) -> frozenset[str]:
        """Ranks, unless any samples will do."""
        return frozenset() if self.part == "random" else frozenset({"ranks"})

    def size(self, samples: int, epoch: int, epochs: int) -> int:
        """Return the samples of an epoch."""
        return max(1, round(self.share * samples))

    def begin(self, samples: Samples) -> Memory:
        """Return which samples are trained on, int64 [kept]."""
        draw = generator(samples.seed, "samples", "ranked")
        members = [(samples.y == number).nonzero().flatten() for number in range(samples.classes)]
        kept = apportion(
            [len(rows) for rows in members], self.size(len(samples), 0, 1), [len(rows) for rows in members]
        )
        chosen = []
        for rows, count in zip(members, kept, strict=True):
            rows = rows[torch.randperm(len(rows), generator=draw)]  # of equal ranks the first are taken
            chosen.append(rows[keep_top(self._worth(samples, rows), count)])
        return {"rows": torch.cat(chosen).sort().values}

    def _worth(self, samples: Samples, rows: Tensor) -> Tensor:
        if self.part == "random":
            return torch.zeros(len(rows))
        assert samples.ranks is not None
        rank = samples.ranks.rank[rows].double()
        return rank if self.part == "hardest" else -rank

    def order(self, samples: Samples, memory: Memory, epoch: int, epochs: int, draw: Generator) -> Tensor:
        """Return the chosen rows in an order drawn for the epoch."""
        rows: Tensor = memory["rows"]
        return rows[torch.randperm(len(rows), generator=draw)]
