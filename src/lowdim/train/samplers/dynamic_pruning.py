"""Dynamic data pruning: every few epochs a part of the samples, or of their chunks, is chosen anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from lowdim.core.errors import RecipeError
from lowdim.core.lazy import torch
from lowdim.core.settings import Moot, count, within
from lowdim.core.topk import keep_top
from lowdim.train.objectives.base import Memory, Samples
from lowdim.train.samplers.base import Losses, Sampler

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class DynamicPruning(Sampler):
    """After ``warm`` epochs on everything, each cycle of ``every`` epochs keeps exactly round(s n) of n units.

    s is ``keep`` where the schedule is "constant"; "linear" goes there in equal steps, s_c = 1 - (1 - keep) (c + 1) / C
    in cycle c of C. A unit is a sample, or, with ``chunk``, so many words of a text in a row; then every text keeps its
    best chunk, and what it keeps is moved together, so that batches become shorter. A unit's score is its loss: of a
    sample when it was last trained on, so that scores cost nothing; of a chunk the loss of a network that reads it
    alone, in evaluation mode, which costs a forward pass over all words at the start of a cycle. What was never scored
    counts as hardest. Ties are broken at random.

    The curve has ``samples_kept``, the share of units of the epoch, and ``samples_explored``, R_s: the share of units
    that any epoch has kept.

    Paper: "Dynamic Data Pruning for Automatic Speech Recognition", Interspeech 2024, arXiv 2406.18373: 70% of the data,
    chosen anew during training, reach the error of all of it; units are utterances or parts of them. Read from its
    abstract; the settings below are ours.

    Args:
        keep: share of units that are kept at the end.
        every: epochs between two choices.
        warm: epochs at the start that train on everything.
        by: "loss", or "random", which chooses evenly and looks at nothing.
        choose: the "hardest" units, the "easiest", or "drawn" without replacement in proportion to their scores.
        schedule: of the kept share, over the cycles.
        chunk: words of a unit; None takes whole samples.

    Example:
        >>> pruning = DynamicPruning(keep=0.7, warm=1)
        >>> [pruning.size(10, epoch, 3) for epoch in range(3)]
        [10, 7, 7]
        >>> [round(DynamicPruning(keep=0.4, warm=1, schedule="linear").share(e, 4), 2) for e in range(4)]
        [1.0, 0.8, 0.6, 0.4]
    """

    moot: ClassVar[Moot] = {"choose": ("by", ("random",))}
    keep: float = within(0.7, above=0, most=1)
    every: int = count(1)
    warm: int = count(1, least=0)
    by: Literal["loss", "random"] = "loss"
    choose: Literal["hardest", "easiest", "drawn"] = "hardest"
    schedule: Literal["constant", "linear"] = "constant"
    chunk: int | None = count(None)

    @property
    def listens(self) -> bool:
        """Whether it goes by losses."""
        return self.by == "loss"

    def check_kind(self, kind: str) -> None:
        """Refuse chunks of what is no text."""
        if self.chunk is not None and kind != "text":
            raise RecipeError(
                f"sampler.chunk cuts texts into chunks of words, and the data is of kind {kind!r}. Leave it out"
            )

    def check_length(self, epochs: int) -> None:
        """Refuse a run that is over before anything is pruned."""
        if epochs <= self.warm:
            raise RecipeError(
                f"sampler 'dynamic-pruning' prunes nothing in {epochs} epochs, the first {self.warm} of which train on "
                "everything. Train for more epochs or lower sampler.warm."
            )

    def scans(self, epochs: int) -> int:
        """Return the passes that score chunks, one a cycle."""
        return -(-(epochs - self.warm) // self.every) if self.chunk and self.by == "loss" else 0

    def share(self, epoch: int, epochs: int) -> float:
        """Return the share of units that an epoch keeps."""
        if epoch < self.warm:
            return 1.0
        if self.schedule == "constant":
            return self.keep
        cycle, cycles = (epoch - self.warm) // self.every, -(-(epochs - self.warm) // self.every)
        return 1 - (1 - self.keep) * (cycle + 1) / cycles

    def size(self, samples: int, epoch: int, epochs: int) -> int:
        """Return the samples of an epoch: the kept ones, or all, each with its kept chunks."""
        return samples if self.chunk else max(1, round(self.share(epoch, epochs) * samples))

    def begin(self, samples: Samples) -> Memory:
        """Return scores that nothing has been heard of yet.

        Raises:
            RecipeError: so few chunks would be kept that some text had none.
        """
        real = self._real(samples)
        if self.chunk and round(self.keep * int(real.sum())) < len(samples):
            raise RecipeError(
                f"sampler.keep {self.keep:g} leaves {round(self.keep * int(real.sum())):,} chunks for {len(samples):,} "
                "texts, each of which keeps one. Raise sampler.keep or lower sampler.chunk"
            )
        scores = torch.full(real.shape, torch.inf)
        return {"scores": scores, "kept": real.clone(), "seen": torch.zeros_like(real), "units": int(real.sum())}

    def _real(self, samples: Samples) -> Tensor:
        """Mark the units that there are: bool [samples], or [samples, chunks] where the last may be all padding."""
        if self.chunk is None:
            return torch.ones(len(samples), dtype=torch.bool)
        parts = [(part != 0).any(1) for part in samples.x.split(self.chunk, 1)]
        parts[0] = torch.ones_like(parts[0])
        return torch.stack(parts, 1)

    def _due(self, epoch: int) -> bool:
        return epoch >= self.warm and (epoch - self.warm) % self.every == 0

    def prepare(self, samples: Samples, memory: Memory, epoch: int, epochs: int, losses: Losses) -> None:
        """Score the chunks at the start of a cycle, each as if it were the whole text."""
        if self.chunk is None or self.by == "random" or not self._due(epoch):
            return
        real = self._real(samples)
        for number, part in enumerate(samples.x.split(self.chunk, 1)):
            rows = real[:, number].nonzero().flatten()
            memory["scores"][rows, number] = losses(part[rows], samples.y[rows])

    def order(self, samples: Samples, memory: Memory, epoch: int, epochs: int, draw: Generator) -> Tensor:
        """Return the rows of the kept samples in an order drawn for the epoch."""
        if self._due(epoch):
            memory["kept"] = self._chosen(self._real(samples), memory["scores"], self.share(epoch, epochs), draw)
        memory["seen"] |= memory["kept"]
        rows: Tensor = (memory["kept"] if self.chunk is None else memory["kept"].any(1)).nonzero().flatten()
        return rows[torch.randperm(len(rows), generator=draw)]

    def _chosen(self, real: Tensor, scores: Tensor, share: float, draw: Generator) -> Tensor:
        """Mark exactly round(share * units) of the units that there are."""
        units = real.flatten().nonzero().flatten()
        units = units[torch.randperm(len(units), generator=draw)]  # ties go to the first: at random
        score = torch.zeros(len(units)) if self.by == "random" else scores.flatten()[units].clone()
        if self.choose == "drawn":
            chance = torch.rand(len(units), dtype=torch.float64, generator=draw)
            score = score.double().clamp_min(1e-9).log() - (-chance.log()).clamp_min(1e-300).log()
        score = -score if self.choose == "easiest" else score
        if self.chunk:
            score = _best_first(score, units // real.shape[1], len(real))
        kept = torch.zeros(real.numel(), dtype=torch.bool)
        kept[units[keep_top(score, max(1, round(share * len(units))))]] = True
        return kept.reshape(real.shape)

    def shown(self, x: Tensor, rows: Tensor, memory: Memory) -> Tensor:
        """Return the words of the kept chunks of some texts, moved together; other samples as they are."""
        if self.chunk is None:
            return x
        words = memory["kept"][rows].repeat_interleave(self.chunk, 1)[:, : x.shape[1]] & (x != 0)
        order = (~words).int().argsort(dim=1, stable=True)[:, : max(1, int(words.sum(1).max()))]
        return torch.where(words, x, 0).gather(1, order)

    def told(self, rows: Tensor, losses: Tensor, memory: Memory) -> None:
        """Remember the losses of samples that were trained on."""
        if self.chunk is None:
            memory["scores"][rows] = losses.float()

    def report(self, memory: Memory) -> dict[str, float]:
        """Return the share of units that are kept, and R_s."""
        kept, seen = (int(memory[name].sum()) / memory["units"] for name in ("kept", "seen"))
        return {"samples_kept": kept, "samples_explored": seen}


def _best_first(score: Tensor, owner: Tensor, owners: int) -> Tensor:
    """Return scores by which the best unit of every owner comes before all units that are not the best of any."""
    order = score.argsort(descending=True, stable=True)
    position = torch.full((owners,), len(order), dtype=torch.int64)
    position = position.scatter_reduce(0, owner[order], torch.arange(len(order)), "amin")
    rank = torch.empty(len(order), dtype=torch.int64)
    rank[order] = torch.arange(len(order), 0, -1)
    best = order[position[position < len(order)]]
    rank[best] += len(order)
    return rank
