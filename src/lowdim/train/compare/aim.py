"""What the networks of a run are trained for and on which samples: an objective and a sampler, with what they remember."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lowdim.core.errors import RecipeError
from lowdim.core.random import generator
from lowdim.data.classification import Dataset
from lowdim.data.select.groups import Groups
from lowdim.nn.blocks import evaluating
from lowdim.train.compare.recipe import TrainingRecipe
from lowdim.train.objectives.base import Drawn, Samples
from lowdim.train.samplers.weighted import weighted_rows

_BATCH = 1000


@dataclass(frozen=True)
class Told:
    """What is known of a run's samples beside themselves and their classes.

    Attributes:
        train: the groups that are trained with, from labels or from ranks, or None.
        conflicting: bool [samples], which of the training samples contradict a bias, or None.
        ranks: int64 [samples], of the training samples, or None.
        validation: groups of the validation samples by label, or None.
        test: groups of the test samples by label, or None.
        ranking: what the ranks say of themselves: their hash, and the method that made them.
    """

    train: Groups | None = None
    conflicting: Tensor | None = None
    ranks: Tensor | None = None
    validation: Groups | None = None
    test: Groups | None = None
    ranking: Mapping[str, Any] | None = None

    def samples(self, data: Dataset, seed: int) -> Samples:
        """Return what objectives and samplers are told of the training samples."""
        x, y = data.train
        groups, names = (None, ()) if self.train is None else (self.train.index, self.train.names)
        return Samples(y, len(data.classes), groups, names, self.conflicting, self.ranks, None, x, seed)


def drawn(recipe: TrainingRecipe, data: Dataset) -> list[int]:
    """Return how many samples each epoch draws."""
    return [recipe.sampler.size(len(data.train.y), epoch, recipe.epochs) for epoch in range(recipe.epochs)]


def steps(recipe: TrainingRecipe, data: Dataset) -> list[int]:
    """Return the optimizer steps of each epoch: the fewest that keep every batch within the size asked for."""
    return [math.ceil(size / recipe.batch) for size in drawn(recipe, data)]


class Aim:
    """The objective and the sampler of a recipe at work on the samples of a run.

    Args:
        recipe: of the run.
        samples: what they are told.
        device: where the network is.

    Raises:
        RecipeError: the objective or the sampler cannot work with these samples.
    """

    def __init__(self, recipe: TrainingRecipe, samples: Samples, device: torch.device) -> None:
        self.objective, self.sampler = recipe.objective, recipe.sampler
        self._epochs, self._seed = recipe.epochs, recipe.seed
        self.samples, self.device = samples, device
        self.memory = {"objective": self.objective.begin(samples), "sampler": self.sampler.begin(samples)}
        self._weights: Tensor | None = self.objective.weights(samples)
        if self._weights is not None and not bool(self._weights.isfinite().all() and self._weights.sum() > 0):
            raise RecipeError("the objective's weights of samples are not finite, or all 0. Change its settings.")
        self._factors = None
        if self._weights is not None and not self.objective.draws:
            self._factors = self._weights / self._weights.mean()

    def order(self, epoch: int, net: nn.Module) -> Tensor:
        """Return the rows of an epoch in their order, the same for every network of a seed that is not looked at."""
        source = generator(self._seed, "data", "order", epoch)
        if self._weights is not None and self.objective.draws:
            return weighted_rows(self._weights, len(self.samples), source)
        self.sampler.prepare(self.samples, self._kept, epoch, self._epochs, lambda x, y: self._losses(net, x, y))
        rows: Tensor = self.sampler.order(self.samples, self._kept, epoch, self._epochs, source)
        return rows

    @property
    def _kept(self) -> dict[str, Any]:
        return self.memory["sampler"]

    @torch.no_grad()
    def _losses(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with evaluating(net):
            parts = [
                nn.functional.cross_entropy(net(a.to(self.device)).float(), b.to(self.device), reduction="none").cpu()
                for a, b in zip(x.split(_BATCH), y.split(_BATCH), strict=True)
            ]
        return torch.cat(parts) if parts else torch.empty(0)

    def batches(self, rows: Tensor, count: int) -> Iterator[Drawn]:
        """Yield the samples of an epoch's rows in ``count`` batches."""
        for part in rows.tensor_split(count):
            first, *others = part.unbind(1) if part.dim() == 2 else (part,)
            yield Drawn(
                self._x(first),
                self.samples.y[first].to(self.device),
                first,
                None if self.samples.groups is None else self.samples.groups[first].to(self.device),
                self.memory["objective"],
                tuple(self._x(other) for other in others),
            )

    def _x(self, rows: Tensor) -> Tensor:
        assert self.samples.x is not None
        return self.sampler.shown(self.samples.x[rows], rows, self._kept).to(self.device)

    def loss(self, net: nn.Module, batch: Drawn) -> Tensor:
        """Return what a step minimises on a batch."""
        outputs = self.objective.forward(net, batch)
        if self._factors is None and not self.sampler.listens:
            mean: Tensor = self.objective.mean(outputs, batch)
            return mean
        losses = self.objective.loss(outputs, batch)
        self.sampler.told(batch.rows, losses.detach().cpu(), self._kept)
        if self._factors is not None:
            losses = losses * self._factors[batch.rows].to(losses)
        return losses.mean()

    def state(self) -> dict[str, Any]:
        """Return what is remembered."""
        return self.memory

    def load(self, state: dict[str, Any]) -> None:
        """Remember a state."""
        self.memory = state


def with_errors(samples: Samples, right: Tensor) -> Samples:
    """Return the samples with what a first network got wrong, of which ``right`` is the contrary."""
    return replace(samples, wrong=~right)
