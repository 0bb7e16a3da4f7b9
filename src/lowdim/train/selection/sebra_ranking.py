"""Sebra's ranking under way."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lowdim.core.random import generator, seeded
from lowdim.data.classification import Dataset
from lowdim.data.errors import DataError
from lowdim.data.select.ranks import Ranks, samples_hash
from lowdim.nn.blocks import evaluating
from lowdim.train.loop import Kept, Loop
from lowdim.train.selection.base import Ranking, check_samples

if TYPE_CHECKING:
    from lowdim.train.selection.sebra import Sebra

JUDGED = 1000  # samples that are judged at once
Augment = Callable[[Tensor, torch.Generator], Tensor]


class RankWarning(UserWarning):
    """The ranks say less than they seem to."""


def weights(p: Tensor, beta: float) -> Tensor:
    """Return u = p^beta, without a gradient.

    Example:
        >>> weights(torch.tensor([0.5, 0.1]), 0.7)
        tensor([0.6156, 0.1995])
    """
    return p.detach() ** beta


def weighted(logits: Tensor, label: Tensor, beta: float) -> Tensor:
    """Return u CE of each sample, fp32 [samples].

    Args:
        logits: [samples, classes].
        label: int64 [samples].
        beta: the exponent of u.
    """
    losses = nn.functional.cross_entropy(logits.float(), label, reduction="none")
    return weights(torch.exp(-losses.detach()), beta) * losses


class SebraRanking(Ranking):
    """A ranking under way.

    Attributes:
        epoch: epochs done.
        selected: bool [samples], those not ranked yet.
        rank: int64 [samples], 0 where there is none yet.
        p: fp32 [samples], the probability of a sample's class when it was ranked, or last judged.
        margin: fp32 [samples], how much likelier its class was than the likeliest other, in nats, after the epoch in
            which half of the samples were ranked; NaN before.
        loop: what trains.
    """

    def __init__(
        self,
        settings: Sebra,
        model: nn.Module,
        data: Dataset,
        seed: int,
        optimizer: torch.optim.Optimizer,
        riders: Sequence[Kept],
        augment: Augment | None,
    ) -> None:
        self.settings, self.model, self.data, self.seed = settings, model, data, seed
        self._augment = augment
        self._device = next(model.parameters()).device
        self._x, self._y = data.train.x.to(self._device), data.train.y.to(self._device)
        check_samples(data)
        total = len(data.train.y)
        self.epoch = 0
        self.selected = torch.ones(total, dtype=torch.bool)
        self.rank = torch.zeros(total, dtype=torch.int64)
        self.p, self.margin = torch.zeros(total), torch.full((total,), torch.nan)
        self.counts: list[int] = []
        self.losses: list[float] = []
        self.loop = Loop(model, optimizer, loss=self._loss, riders=riders)

    def _loss(self, model: nn.Module, rows: Tensor) -> Tensor:
        x, y = self._x[rows], self._y[rows]
        if self._augment is not None:
            x = self._augment(x, generator(self.seed, "sebra", "augment", self.loop.step))
        return weighted(model(x), y, self.settings.beta).mean()

    @property
    def ended(self) -> str:
        """Why no epoch follows; empty while one does."""
        left = self.data.train.y[self.selected]
        if not len(left):
            return "all samples are ranked"
        if len(left) == 1 or len(left.unique()) == 1:
            # its class's frequency is all that training could still teach
            return f"the {len(left)} samples left are of one class"
        return "" if self.epoch < self.settings.epochs else f"{self.epoch} epochs are over"

    def order(self) -> Tensor:
        """Return the samples that the next epoch trains on, int64."""
        source = generator(self.seed, "sebra", "order", self.epoch)
        left = self.selected.nonzero().flatten()
        if self.settings.draws == "replacement":
            return left[torch.randint(len(left), (len(self.selected),), generator=source)]
        return left[torch.randperm(len(left), generator=source)]

    def train_epoch(self) -> None:
        """Train through the selected samples, then rank those that are learnt."""
        rows = self.order()
        # never one sample alone, which batch norm cannot train on: the last three make one batch, even of two
        batches = rows.tensor_split(min(-(-len(rows) // self.settings.batch), len(rows) // 2))
        self.model.train()
        with seeded(self._device, self.seed, "sebra", "epoch", self.epoch):
            self.losses.append(self.loop.run(batches))
        self.epoch += 1
        self._judge()

    @torch.no_grad()
    def _judge(self) -> None:
        """Rank the selected samples that the network has learnt, in evaluation mode."""
        whole = bool(self.margin.isnan().any())  # until half are ranked, what is ranked is judged as well
        rows = torch.arange(len(self.selected)) if whole else self.selected.nonzero().flatten()
        with evaluating(self.model):
            logits = torch.cat([self.model(self._x[part]).float().cpu() for part in rows.split(JUDGED)])
        if not bool(logits.isfinite().all()):
            raise DataError(
                f"the network gives values that are not finite after epoch {self.epoch}: training has diverged. Use a "
                f"lower rate than lr={self.settings.lr:g}."
            )
        label = self.data.train.y[rows].unsqueeze(1)
        found = logits.softmax(1).gather(1, label).squeeze(1)
        asked = self.selected[rows]
        self.p[rows[asked]] = found[asked]
        learnt = rows[asked & (found > self.settings.p_crit)]
        self.rank[learnt], self.selected[learnt] = self.epoch, False
        self.counts.append(len(learnt))
        if whole and 2 * int(self.selected.sum()) <= len(self.selected):
            own = logits.gather(1, label).squeeze(1)
            self.margin = own - logits.scatter(1, label, -torch.inf).amax(1)

    def ranks(self, names: Sequence[str] = ()) -> Ranks:
        """Return the ranks as they are; samples that have none come last.

        Args:
            names: of the samples.

        Raises:
            DataError: no sample was ever learnt.
        """
        settings = self.settings
        if not any(self.counts):
            raise DataError(
                f"no sample was learnt to p > {settings.p_crit} in {self.epoch} epochs (the most likely has "
                f"{float(self.p.max()):.2f}), so that there are no ranks. Train longer (epochs), faster (lr), or lower "
                "p_crit."
            )
        rank = torch.where(self.selected, self.epoch + 1, self.rank)
        if int(rank.min()) == int(rank.max()):
            warnings.warn(
                f"all {len(rank)} samples were ranked in epoch {int(rank[0])}, so that their ranks say nothing. Train "
                "slower (a lower lr), or raise p_crit.",
                RankWarning,
                stacklevel=2,
            )
        facts = {
            "epochs": self.epoch,
            "steps": self.loop.step,
            "ended": self.ended,
            "ranked": self.counts,
            "never_ranked": int(self.selected.sum()),
            "losses": self.losses,
        }
        values = {"p": self.p.clone()} | ({} if self.margin.isnan().any() else {"margin": self.margin.clone()})
        data = self.data
        return Ranks(
            rank,
            data.train.y,
            data.classes,
            samples_hash(data),
            "sebra",
            settings.to_dict() | {"seed": self.seed},
            tuple(names),
            values,
            facts,
        )

    # ---------------------------------------------------------------- what is kept

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on; the order of the samples follows from the seed and the epoch."""
        kept = {name: getattr(self, name) for name in _KEPT}
        return kept | {"loop": self.loop.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a ``state_dict`` was taken."""
        self.loop.load_state_dict(state["loop"])
        for name in _KEPT:
            setattr(self, name, state[name])


_KEPT = ("epoch", "selected", "rank", "p", "margin", "counts", "losses")
