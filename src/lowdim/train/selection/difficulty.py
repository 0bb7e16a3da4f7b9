"""Ranks by difficulty: how far networks are from a sample's class early on, or how often they forget it."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowdim.core.random import derive_seed, generator
from lowdim.core.settings import count, within
from lowdim.data.classification import Dataset
from lowdim.data.errors import DataError
from lowdim.data.select.base import Selector
from lowdim.data.select.ranks import Ranks, samples_hash
from lowdim.nn.blocks import evaluating
from lowdim.train.loop import Loop

_JUDGED = 1000
Told = Callable[[int], None]


@dataclass(frozen=True)
class Difficulty(Selector):
    """Ranks the samples of each class from the easiest, 1, to the hardest, by a score that networks in training give.

    ``networks`` copies of the model are trained one after another, plainly, with SGD of momentum 0.9; the first from
    the model's own weights, the others from weights drawn anew. Scores are means over the copies, in evaluation mode.
    Samples of one score share a rank. The model is left as it was.

    Args:
        networks: copies that are trained.
        epochs: of each.
        batch: samples of a step at most.
        lr: learning rate, constant.
    """

    networks: int = count(3)
    epochs: int = count(5)
    batch: int = count(128, least=2)
    lr: float = within(0.05, above=0)

    @property
    @abstractmethod
    def title(self) -> str:
        """What the score is called among a rank's values, and the selector in the registry."""

    @abstractmethod
    def begin(self, samples: int) -> Score:
        """Return what watches a network in training."""

    def rank(
        self, model: nn.Module, data: Dataset, *, seed: int = 0, told: Callable[[int], None] | None = None
    ) -> Ranks:
        """Rank ``data.train``.

        Args:
            model: maps a batch of samples to logits [samples, classes].
            data: whose training samples are ranked.
            seed: of new weights and of the order of the samples.
            told: called after every epoch with the epochs done.

        Raises:
            DataError: a value is not finite, or training diverged.
        """
        scores = self.scores(model, data, seed=seed, told=told)
        y, classes = data.train.y, data.classes
        rank = torch.zeros(len(y), dtype=torch.int64)
        for number in range(len(classes)):
            mine = (y == number).nonzero().flatten()
            if len(mine):
                rank[mine] = torch.unique(scores[mine], return_inverse=True)[1] + 1
        settings = self.to_dict() | {"seed": seed}
        return Ranks(rank, y, classes, samples_hash(data), self.title, settings, values={self.title: scores})

    def scores(self, model: nn.Module, data: Dataset, *, seed: int = 0, told: Told | None = None) -> Tensor:
        """Return the score of every training sample, the hardest the highest, fp32 [samples]; see `rank`."""
        total = torch.zeros(len(data.train.y))
        for number in range(self.networks):
            net, score = copy.deepcopy(model), self.begin(len(total))
            if number:
                _anew(net, derive_seed(seed, "difficulty", number))
            self._train(net, data, derive_seed(seed, "difficulty", "order", number), score)
            total += score.value()
            if told is not None:
                told((number + 1) * self.epochs)
        return total / self.networks

    def _train(self, net: nn.Module, data: Dataset, seed: int, score: Score) -> None:
        device = next(net.parameters()).device
        x, y = data.train.x.to(device), data.train.y.to(device)
        if x.is_floating_point() and not bool(x.isfinite().all()):
            raise DataError("samples hold values that are not finite. Remove or fill them.")
        loop = Loop(
            net,
            torch.optim.SGD(net.parameters(), lr=self.lr, momentum=0.9),
            loss=lambda model, rows: nn.functional.cross_entropy(model(x[rows]), y[rows]),
        )
        net.train()
        for epoch in range(self.epochs):
            order = torch.randperm(len(y), generator=generator(seed, "order", epoch))
            loop.run(order.tensor_split(math.ceil(len(y) / self.batch)))
            with evaluating(net), torch.no_grad():
                logits = torch.cat([net(part).float().cpu() for part in x.split(_JUDGED)])
            if not bool(logits.isfinite().all()):
                raise DataError(f"training diverged in epoch {epoch + 1}. Use a lower rate than lr={self.lr:g}.")
            score.see(logits.softmax(1), data.train.y)


class Score:
    """Watches a network: what it says of the training samples after each epoch, and the score that follows."""

    def see(self, p: Tensor, y: Tensor) -> None:
        """Look at the probabilities after an epoch, fp32 [samples, classes]."""
        raise NotImplementedError

    def value(self) -> Tensor:
        """Return the score of each sample, fp32 [samples]."""
        raise NotImplementedError


def _anew(net: nn.Module, seed: int) -> None:
    """Draw all weights again, by the rules of their modules; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in net.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
