"""A ranking by difficulty under way."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lowdim.core.random import generator, seeded
from lowdim.data.classification import Dataset
from lowdim.data.errors import DataError
from lowdim.data.select.ranks import Ranks, samples_hash
from lowdim.nn.blocks import evaluating
from lowdim.train.loop import Loop
from lowdim.train.selection.base import Ranking, check_samples

if TYPE_CHECKING:
    from lowdim.train.selection.difficulty import Difficulty

_JUDGED = 1000


class Grading(Ranking):
    """A ranking by difficulty under way; ``epoch`` counts those of all networks."""

    def __init__(self, settings: Difficulty, model: nn.Module, data: Dataset, seed: int) -> None:
        x, y = data.train
        check_samples(data)
        self.settings, self.data, self.seed, self._model = settings, data, seed, model
        self._device = next(model.parameters()).device
        self._x, self._y = x.to(self._device), y.to(self._device)
        self.epoch, self._total = 0, torch.zeros(len(y))
        self._seen: dict[str, Any] = {}
        self._loop = self._fresh()

    def _fresh(self) -> Loop:
        """Return the loop of the next network, from weights of its own."""
        net, number = copy.deepcopy(self._model), self.epoch // self.settings.epochs
        if number:
            with seeded(self._device, self.seed, "difficulty", number):
                for module in net.modules():
                    if callable(reset := getattr(module, "reset_parameters", None)):
                        reset()
        optimizer = torch.optim.SGD(net.parameters(), lr=self.settings.lr, momentum=0.9)
        return Loop(
            net, optimizer, loss=lambda model, rows: nn.functional.cross_entropy(model(self._x[rows]), self._y[rows])
        )

    @property
    def ended(self) -> str:
        """Why no epoch follows; empty while one does."""
        over = self.epoch == self.settings.networks * self.settings.epochs
        return f"{self.settings.networks} networks have been trained" if over else ""

    def train_epoch(self) -> None:
        """Train an epoch, and look at all samples."""
        settings, net = self.settings, self._loop.model
        order = torch.randperm(len(self._y), generator=generator(self.seed, "difficulty", "order", self.epoch))
        net.train()
        with seeded(self._device, self.seed, "difficulty", "epoch", self.epoch):
            self._loop.run(order.tensor_split(math.ceil(len(order) / settings.batch)))
        with evaluating(net), torch.no_grad():
            logits = torch.cat([net(part).float().cpu() for part in self._x.split(_JUDGED)])
        self.epoch += 1
        if not bool(logits.isfinite().all()):
            raise DataError(f"training diverged in epoch {self.epoch}. Use a lower rate than lr={settings.lr:g}.")
        settings.see(self._seen, logits.softmax(1), self.data.train.y)
        if self.epoch % settings.epochs == 0:
            self._total += settings.score(self._seen)
            self._seen = {}
            if not self.ended:
                self._loop = self._fresh()

    def ranks(self, names: Sequence[str] = ()) -> Ranks:
        """Return the ranks by the networks that have been trained to the end.

        Raises:
            DataError: there are none.
        """
        networks = self.epoch // self.settings.epochs
        if not networks:
            raise DataError("no network has been trained to the end yet, so that there are no ranks")
        y, scores = self.data.train.y, self._total / networks
        rank = torch.zeros(len(y), dtype=torch.int64)
        for number in y.unique():
            mine = (y == number).nonzero().flatten()
            rank[mine] = torch.unique(scores[mine], return_inverse=True)[1] + 1
        settings, name = self.settings.to_dict() | {"seed": self.seed}, self.settings.name
        values = {name: scores}
        return Ranks(rank, y, self.data.classes, samples_hash(self.data), name, settings, tuple(names), values)

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on."""
        loop = None if self.ended else self._loop.state_dict()
        return {"epoch": self.epoch, "total": self._total, "seen": self._seen, "loop": loop}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a ``state_dict`` was taken."""
        self.epoch, self._total, self._seen = state["epoch"], state["total"].clone(), dict(state["seen"])
        if not self.ended:
            self._loop = self._fresh()
            self._loop.load_state_dict(state["loop"])
