"""What every way of choosing a mask before training is."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lowdim.core.allocation import counts_for, parse
from lowdim.core.errors import RecipeError
from lowdim.core.lazy import torch
from lowdim.core.settings import Settings, check_sparsity
from lowdim.core.topk import keep_top, keep_top_across

if TYPE_CHECKING:
    from torch import Tensor, nn

Loss = Callable[[Any, Any], "Tensor"]


@dataclass(frozen=True, eq=False)
class Start:
    """What a mask may be chosen from: a network, the weights that become sparse, and perhaps data.

    Attributes:
        stacked: names of weights that hold a matrix per expert.
    """

    model: nn.Module
    weights: dict[str, nn.Parameter]
    data: Any
    loss: Loss | None
    seed: int
    stacked: frozenset[str] = frozenset()

    def apart(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return one tensor per matrix: those of stacked experts by name and number, such as "experts.up[3]"."""
        found: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            found |= {f"{name}[{i}]": t for i, t in enumerate(tensor)} if name in self.stacked else {name: tensor}
        return found

    def together(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return one mask per weight; undoes `apart`."""
        return {
            name: torch.stack([masks[f"{name}[{i}]"] for i in range(len(weight))])
            if name in self.stacked
            else masks[name]
            for name, weight in self.weights.items()
        }

    def counts(self, allocation: Any, sparsity: float) -> dict[str, int]:
        """Return how many weights each layer keeps by an allocation of shapes alone."""
        from lowdim.models.structure.selection import ends

        return counts_for(shapes_of(self.apart(self.weights)), allocation, sparsity, ends(self.model))


@dataclass(frozen=True)
class Initialisation(Settings, ABC):
    """Chooses masks with an exact number of weights and leaves the network as it was.

    Attributes:
        needs: what it looks at besides the network: "nothing", an "example" input, or "batches" of inputs and
            targets.
    """

    needs: ClassVar[str] = "nothing"

    @property
    def takes_classifier(self) -> bool:
        """Whether the classifier is part of the budget, as an allocation may have it."""
        return False

    def masks(
        self,
        model: nn.Module,
        data: Any = None,
        *,
        sparsity: float,
        loss: Loss | None = None,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        seed: int = 0,
    ) -> dict[str, Tensor]:
        """Return a bool mask, True = kept, for every weight that becomes sparse.

        Args:
            model: the network, as it was initialised and before it is sharded; it comes back unchanged. Where many
                ranks train it, choose on the same data in each, or on one and broadcast.
            data: batches (inputs, targets), one or several, for methods that need "batches"; an example input,
                of which the values do not matter, for those that need an "example".
            sparsity: share of zeros over the chosen weights.
            loss: loss(outputs, targets) for methods that need batches; cross-entropy if None.
            include: globs of the weights to choose from, see ``lowdim.models.structure.selection.select``.
            exclude: globs of weights that stay dense.
            seed: seeds what is drawn.

        Raises:
            RecipeError: a setting or the data is impossible.
            NumericalError: a score is NaN or infinite.
        """
        check_sparsity(sparsity)
        masks = self.choose(self.start(model, data, loss, include, exclude, seed), sparsity)
        warn_of_empty(type(self).__name__, masks)
        return masks

    def start(
        self,
        model: nn.Module,
        data: Any = None,
        loss: Loss | None = None,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        seed: int = 0,
    ) -> Start:
        """Gather what the choice is based on."""
        from lowdim.models.channels.kinds import plain
        from lowdim.models.structure import selection

        if self.needs != "nothing" and data is None:
            wanted = {"batches": "batches (inputs, targets)", "example": "an example input"}[self.needs]
            raise RecipeError(f"{type(self).__name__} needs {wanted} as its second argument; got none")
        found = selection.weights(model, include, exclude, classifier=self.takes_classifier)
        chosen = [w for w in found if not w.dense]
        weights = {w.name: w.parameter for w in chosen}
        for name, weight in weights.items():
            if hasattr(weight, "device_mesh"):
                raise RecipeError(
                    f"{name} is sharded over ranks. Choose masks before fully_shard, on the same data in every rank"
                )
        return Start(plain(model), weights, data, loss, seed, frozenset(w.name for w in chosen if w.stacked))

    @abstractmethod
    def choose(self, start: Start, sparsity: float) -> dict[str, Tensor]:
        """Return the masks."""


class Allocated(Initialisation):
    """Chooses masks with as many weights in each layer as an allocation gives it.

    Attributes:
        allocation: the name of an allocation of shapes alone, the object, or a sparsity for every layer by name.
    """

    allocation: Any

    @property
    def takes_classifier(self) -> bool:
        """Whether the allocation counts the classifier."""
        return parse(self.allocation).takes_classifier


@dataclass(frozen=True)
class Scored(Initialisation):
    """Keeps the highest scores over all chosen weights together, in one shot."""

    @abstractmethod
    def scores(self, start: Start) -> dict[str, Tensor]:
        """Return one number per weight, of the weight's shape; larger is kept."""

    def choose(self, start: Start, sparsity: float) -> dict[str, Tensor]:
        """Return the masks."""
        return keep_top_across(self.scores(start), budget(start.weights, sparsity))


def budget(weights: Mapping[str, Tensor], sparsity: float) -> int:
    """Return how many weights are kept in all."""
    return round((1.0 - check_sparsity(sparsity)) * sum(w.numel() for w in weights.values()))


def keep_counted(scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
    """Keep the highest scores of each tensor by itself; ties go to the lowest index."""
    return {name: keep_top(score, counts[name]) for name, score in scores.items()}


def warn_of_empty(who: str, masks: Mapping[str, Tensor]) -> None:
    """Warn, by name, of weights that kept nothing: no signal passes there."""
    empty = [name for name, mask in masks.items() if mask.numel() and not bool(mask.any())]
    if empty:
        warnings.warn(
            f"{who} left no weight in {', '.join(empty[:5])}{' and others' * (len(empty) > 5)}: no signal passes "
            "there. Use a lower sparsity, or keep only its ratios or another method",
            stacklevel=3,
        )


def shapes_of(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the weights' shapes by name."""
    return {name: tuple(weight.shape) for name, weight in weights.items()}
