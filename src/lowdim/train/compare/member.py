"""One network in training: its weights, its optimizer, its masks, and how far it has come."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lowdim.core.allocation import ERK, Allocation, parse
from lowdim.core.random import derive_seed, generator
from lowdim.data.classification import Dataset
from lowdim.models.small.nets import Net
from lowdim.models.structure.selection import select
from lowdim.nn.blocks import evaluating
from lowdim.nn.csr.linear import CSRLinear
from lowdim.nn.csr.swap import sparse_
from lowdim.train.compare import measure
from lowdim.train.compare.recipe import TrainingRecipe
from lowdim.train.compare.told import Told
from lowdim.train.dynamic.static import Static
from lowdim.train.initial.random import draw_counts
from lowdim.train.loop import Loop
from lowdim.train.samplers.aim import Aim
from lowdim.train.sparse.measured import measured
from lowdim.train.sparse.training import SparseTraining

Role = Literal["early", "dense", "small", "static", "resampled", "sparse"]

_MASKED = ("static", "resampled", "sparse")


def roles(recipe: TrainingRecipe) -> list[Role]:
    """Return what is trained, in this order: the twins asked for, the sparse network, what is made of its numbers.

    A static twin is left out where the run itself is one, resampled masks where they would be drawn as its own were.
    """
    itself = not recipe.training.moves and parse(recipe.allocation) == ERK() and recipe.initialisation is None
    twins: list[Role] = [role for role in ("dense", "small", "static") if role in recipe.twins]
    drawn = not recipe.training.moves and recipe.initialisation is None
    after: list[Role] = ["resampled"] if "resampled" in recipe.twins and not drawn else []
    return [*(twin for twin in twins if twin != "static" or not itself), "sparse", *after]


def takes_classifier(recipe: TrainingRecipe) -> bool:
    """Tell whether the recipe's budget counts the classifier, which stays dense by default."""
    start = recipe.initialisation
    found: bool = (parse(recipe.allocation) if start is None else start).takes_classifier
    return found


def chosen(recipe: TrainingRecipe, net: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights that become sparse in a recipe's network, and in its static twin, by name."""
    return select(net, recipe.include or None, recipe.exclude or None, classifier=takes_classifier(recipe))


def drawn(recipe: TrainingRecipe, data: Dataset) -> list[int]:
    """Return how many samples each epoch draws."""
    return [recipe.sampler.size(len(data.train.y), epoch, recipe.epochs) for epoch in range(recipe.epochs)]


def steps_of(recipe: TrainingRecipe, data: Dataset) -> list[int]:
    """Return the optimizer steps of each epoch: the fewest that keep every batch within the size asked for."""
    return [math.ceil(samples / recipe.batch) for samples in drawn(recipe, data)]


class Member:
    """A network of a run and everything that its training changes.

    Args:
        role: "sparse" is what the recipe asks for; "dense" has the same weights at the start and no masks; "small" is
            dense and has at most the parameters that the sparse one keeps; "static" has random ERK masks that stand,
            "resampled" random masks of given numbers; "early" is dense and says which samples are hard, for an
            objective that asks.
        recipe: of the run.
        data: what it is trained on.
        device: where.
        counts: weights that each layer of "resampled" keeps, by name.
        told: what is known of the samples.
        wrong: bool [samples], what "early" got wrong.
    """

    def __init__(
        self,
        role: Role,
        recipe: TrainingRecipe,
        data: Dataset,
        device: torch.device,
        counts: Mapping[str, int] | None = None,
        told: Told | None = None,
        wrong: Tensor | None = None,
    ) -> None:
        self.role, self.recipe, self.data, self.device = role, recipe, data, device
        self._counts, self.told = counts or {}, told or Told()
        self.aim = Aim(
            recipe.objective,
            recipe.sampler,
            self.told.samples(data, recipe.seed, wrong),
            epochs=recipe.epochs,
            device=device,
        )
        self.settings = self._settings()
        self.net = self.settings.build(data, recipe.seed).to(device)
        self.steps = sum(steps_of(recipe, data))
        self.sparsity = None
        if role in _MASKED and recipe.executor == "csr":
            self._store_sparsely()
        self.optimizer = self._optimizer()
        if role in _MASKED:
            self.sparsity = self._sparsity()
            with evaluating(self.net), torch.no_grad():
                self.net(self._first_batch()[0][:2])  # what a method looks for in the network, it finds or misses now
        self.loop = Loop(
            self.net,
            self.optimizer,
            loss=self.aim.loss,
            schedule=self.factor,
            riders=[] if self.sparsity is None else [self.sparsity],
        )
        self.initial = self.kept()
        self.epoch, self.seconds = 0, 0.0
        self.curve: list[dict[str, Any]] = []

    def _settings(self) -> Net:
        net: Net = self.recipe.net
        if self.role != "small":
            return net
        with torch.device("meta"):
            weights = chosen(self.recipe, net.module(self.data)).values()
        zeros = round(self.recipe.sparsity * sum(weight.numel() for weight in weights))
        return net.within(self.data, net.parameters(self.data) - zeros)

    def _optimizer(self) -> torch.optim.Optimizer:
        chosen = self.recipe.optimizer
        assert chosen.lr is not None  # set by the recipe's check
        if chosen.name == "adamw":
            return torch.optim.AdamW(self.net.parameters(), lr=chosen.lr, weight_decay=chosen.weight_decay)
        return torch.optim.SGD(
            self.net.parameters(), lr=chosen.lr, momentum=chosen.momentum, weight_decay=chosen.weight_decay
        )

    def _store_sparsely(self) -> None:
        """Replace the layers that become sparse by ones that hold only kept weights, under the simulation's masks."""
        self.optimizer = self._optimizer()
        simulated = self._sparsity()
        masks = dict(simulated.masks)
        simulated.remove()
        sparse_(self.net, masks)

    def _sparsity(self) -> SparseTraining:
        recipe = self.recipe
        static = self.role == "static"
        method = Static() if self.role != "sparse" else recipe.training
        if any(isinstance(module, CSRLinear) for module in self.net.modules()):
            return SparseTraining(self.net, self.optimizer, method=method, total_steps=self.steps, seed=recipe.seed)
        if self.role == "resampled":
            return SparseTraining(self.net, self.optimizer, method=method, seed=recipe.seed, masks=self._resampled())
        start = None if static else self._start()
        return SparseTraining(
            self.net,
            self.optimizer,
            sparsity=recipe.sparsity,
            allocation="erk" if static or (start and not method.changes_density) else self._allocation(),
            method=method,
            include=[*chosen(recipe, self.net)] if static else recipe.include or None,
            exclude=recipe.exclude or None,
            total_steps=self.steps,
            seed=recipe.seed,
            pattern=recipe.pattern,
            masks=start,
        )

    def _resampled(self) -> dict[str, Tensor]:
        """Return masks with the given numbers, drawn anew."""
        shapes = {name: tuple(weight.shape) for name, weight in chosen(self.recipe, self.net).items()}
        return draw_counts(shapes, self._counts, derive_seed(self.recipe.seed, "resampled"))

    def _first_batch(self) -> tuple[Tensor, Tensor]:
        return self._batch(self._order(0)[: self.recipe.batch])

    def _allocation(self) -> Allocation:
        """Return the recipe's allocation; one that looks at inputs sees those of the first batch."""
        recipe, allocation = self.recipe, parse(self.recipe.allocation)
        if allocation.scale_from != "wanda":
            return allocation
        chosen = {"include": recipe.include or None, "exclude": recipe.exclude or None}
        return measured(allocation, self.net, [self._first_batch()], **chosen)

    def _start(self) -> dict[str, Tensor] | None:
        """Return the masks that the recipe's initialisation chooses, from the first batch where it wants data."""
        start, recipe = self.recipe.initialisation, self.recipe
        if start is None:
            return None
        x, y = self._first_batch()
        given = {"nothing": None, "example": x[:1], "batches": [(x, y)]}[start.needs]
        found: dict[str, Tensor] = start.masks(
            self.net,
            given,
            sparsity=recipe.sparsity,
            include=recipe.include or None,
            exclude=recipe.exclude or None,
            seed=recipe.seed,
        )
        return found

    # ---------------------------------------------------------------- training

    def _order(self, epoch: int) -> Tensor:
        """Return the plain order of an epoch, the same for every network of a seed."""
        return torch.randperm(len(self.data.train.y), generator=generator(self.recipe.seed, "data", "order", epoch))

    def factor(self, step: int) -> float:
        """Return the factor on the learning rate of a step, counted from 0."""
        done, schedule = step / self.steps, self.recipe.optimizer.schedule
        if schedule == "cosine":
            return (1 + math.cos(math.pi * done)) / 2
        return 0.1 ** ((done >= 0.5) + (done >= 0.75)) if schedule == "step" else 1.0

    def _batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.data.train.x[rows].to(self.device), self.data.train.y[rows].to(self.device)

    def train_epoch(self, advance: Callable[[], None] = lambda: None) -> None:
        """Train one epoch and put a point on the curve."""
        begun = time.perf_counter()
        batches = self.aim.batches(self.epoch, self.net, self.recipe.batch)
        loss = self.loop.run(batches, lambda *_: advance())
        self.epoch += 1
        self.seconds += time.perf_counter() - begun
        self._point(self.loop.step, loss)

    def _point(self, step: int, loss: float) -> None:
        seen = measure.answer(self.net, self.data.validation)
        point = {
            "epoch": self.epoch,
            "step": step,
            "loss": loss,
            "validation_loss": seen.loss,
            "validation_accuracy": seen.accuracy,
        }
        if self.sparsity is not None:
            point |= {"sparsity": self.sparsity.sparsity(), "explored": self.sparsity.explored()}
        if self.told.validation is not None:
            point["validation_worst_group"] = measure.worst(measure.by_group(seen.hits, self.told.validation.groups))
        self.curve.append(point | self.aim.report())

    # ---------------------------------------------------------------- what is kept

    def kept(self) -> dict[str, int]:
        """Return how many weights each sparse layer keeps; nothing for a dense network."""
        return {} if self.sparsity is None else {layer.name: layer.kept for layer in self.sparsity.layers}

    def state(self) -> dict[str, Any]:
        """Return everything needed to go on; the order of the data follows from seed, epoch and what ``aim`` knows."""
        return {
            "epoch": self.epoch,
            "seconds": self.seconds,
            "curve": self.curve,
            "initial": self.initial,
            "loop": self.loop.state_dict(),
            "aim": self.aim.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.loop.load_state_dict(state["loop"])
        if "aim" in state:  # older runs had none, and nothing to remember
            self.aim.load_state_dict(state["aim"])
        self.epoch, self.seconds = state["epoch"], state["seconds"]
        self.curve, self.initial = state["curve"], state["initial"]
