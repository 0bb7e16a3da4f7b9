"""An objective and a sampler at work on some samples, with what they remember."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lowdim.core.errors import RecipeError
from lowdim.core.random import generator
from lowdim.nn.blocks import evaluating
from lowdim.train.objectives.base import Drawn, Objective, Samples
from lowdim.train.samplers.base import Sampler, check_together
from lowdim.train.samplers.weighted import weighted_rows

_BATCH = 1000


class Aim:
    """What a network is trained for and on which samples; a `lowdim.train.loop.Loop` takes its `loss` and `batches`.

    Args:
        objective: what is minimised.
        sampler: which samples an epoch draws.
        samples: what both are told; they stay where they are, batches go to ``device``.
        epochs: of the run.
        device: where the network is.

    Raises:
        RecipeError: the objective or the sampler cannot work with these samples, or they do not go together.

    Example:
        >>> from lowdim.train.objectives.erm import ERM
        >>> from lowdim.train.samplers.shuffled import Shuffled
        >>> crowd = Samples(torch.eye(2), torch.tensor([0, 1]), classes=2)
        >>> aim, net = Aim(ERM(), Shuffled(), crowd), nn.Identity()
        >>> [round(float(aim.loss(net, batch)), 4) for batch in aim.batches(0, net, most=1)]
        [0.3133, 0.3133]
    """

    def __init__(
        self,
        objective: Objective,
        sampler: Sampler,
        samples: Samples,
        *,
        epochs: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        check_together(objective, sampler)
        _check_known(objective, sampler, samples)
        self.objective, self.sampler, self.samples = objective, sampler, samples
        self._epochs, self._device = epochs, device
        self._known, self._drawn = objective.begin(samples), sampler.begin(samples)
        self._weights = objective.weights(samples)
        if self._weights is not None and not bool(self._weights.isfinite().all() and self._weights.sum() > 0):
            raise RecipeError("the objective's weights of samples are not finite, or all 0. Change its settings.")
        if self._weights is not None and bool((self._weights == self._weights[0]).all()):
            self._weights = None  # one weight for all is none: drawn and minimised as without
        self._factors = None
        if self._weights is not None and not objective.draws:
            self._factors = self._weights / self._weights.mean()

    # ---------------------------------------------------------------- samples

    def order(self, epoch: int, net: nn.Module) -> Tensor:
        """Return the rows of an epoch, int64 [drawn] or [drawn, 1 + partners]; it depends on seed, epoch and memory."""
        source = generator(self.samples.seed, "data", "order", epoch)
        if self._weights is not None and self.objective.draws:
            return weighted_rows(self._weights, len(self.samples), source)
        told = (self.samples, self._drawn, epoch, self._epochs)
        self.sampler.prepare(*told, lambda x, y: self._losses(net, x, y))
        return self.sampler.order(*told, source)

    def batches(self, epoch: int, net: nn.Module, most: int) -> Iterator[Drawn]:
        """Yield the samples of an epoch in batches of equal size, up to one, of at most ``most`` samples."""
        rows = self.order(epoch, net)
        for part in rows.tensor_split(math.ceil(len(rows) / most)):
            first, *others = part.unbind(1) if part.dim() == 2 else (part,)
            grouped = self.samples.groups is not None
            yield Drawn(
                self._x(first),
                self.samples.y[first].to(self._device),
                first,
                self.samples.index[first].to(self._device) if grouped else None,
                self._known,
                tuple(self._x(other) for other in others),
            )

    def _x(self, rows: Tensor) -> Tensor:
        return self.sampler.shown(self.samples.x[rows], rows, self._drawn).to(self._device)

    @torch.no_grad()
    def _losses(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with evaluating(net):
            parts = [
                nn.functional.cross_entropy(net(a.to(self._device)).float(), b.to(self._device), reduction="none").cpu()
                for a, b in zip(x.split(_BATCH), y.split(_BATCH), strict=True)
            ]
        return torch.cat(parts)

    # ---------------------------------------------------------------- what is minimised

    def loss(self, net: nn.Module, batch: Drawn) -> Tensor:
        """Return what a step minimises on a batch."""
        outputs = self.objective.forward(net, batch)
        if self._factors is None and not self.sampler.listens:
            return self.objective.mean(outputs, batch)
        losses = self.objective.loss(outputs, batch)
        self.sampler.told(batch.rows, losses.detach().cpu(), self._drawn)
        losses = self.objective.weighed(losses, batch)
        if self._factors is not None:
            losses = losses * self._factors[batch.rows].to(losses)
        return losses.mean()

    def report(self) -> dict[str, float]:
        """Return what is to be put on the curve after an epoch."""
        return self.sampler.report(self._drawn)

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered."""
        return {"objective": self._known, "sampler": self._drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a ``state_dict`` was taken."""
        self._known, self._drawn = dict(state["objective"]), dict(state["sampler"])


def _check_known(objective: Objective, sampler: Sampler, samples: Samples) -> None:
    """Refuse samples of which too little is known."""
    for chosen in (objective, sampler):
        for need in ("groups", "ranks"):
            if need in chosen.requires and getattr(samples, need) is None:
                raise RecipeError(f"{type(chosen).__name__} needs {need} of the samples, and Samples.{need} is None")
    if objective.early and samples.wrong is None:
        raise RecipeError(
            f"{type(objective).__name__} needs to know what a first network got wrong after {objective.early} epochs: "
            "give Samples.wrong"
        )
