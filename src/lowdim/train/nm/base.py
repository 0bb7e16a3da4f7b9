"""What every rule for the masks of a model in training answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lowdim.core.errors import RecipeError
from lowdim.core.lazy import torch
from lowdim.core.pattern.nm import NM
from lowdim.core.settings import Settings, count, share, within

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from lowdim.core.pattern import Pattern
    from lowdim.train.nm.riders import MaskRider


@dataclass(frozen=True)
class Start:
    """What a rule begins with.

    Attributes:
        parameters: by name, the pruned weights.
        masks: by the same names, which of them are kept, bool.
        pattern: what masks must be like.
        optimizer: that trains the weights.
        total_steps: of the run.
        scales: measures, when asked, the root mean square of each weight's inputs, fp32 [in] by name.
        transposed: names of weights that are [in, out].
    """

    parameters: Mapping[str, nn.Parameter]
    masks: Mapping[str, Tensor]
    pattern: Pattern
    optimizer: Optimizer
    total_steps: int
    scales: Callable[[], Mapping[str, Tensor]]
    transposed: Collection[str] = ()


@dataclass(frozen=True)
class MaskRule(Settings, ABC):
    """Says what becomes of the masks.

    Attributes:
        moves: whether masks move, so that pruned weights begin with dense values.
    """

    moves: ClassVar[bool] = False

    @abstractmethod
    def ride(self, start: Start) -> MaskRider:
        """Let the masks ride on an optimizer."""

    def check(self, total_steps: int) -> None:
        """Refuse a run in which the rule would do nothing.

        Raises:
            RecipeError: says why.
        """

    def beside(self) -> Mapping[str, Any]:
        """Return the settings of what stands beside pruned layers, for `lowdim.nn.slorb.add_slorb`; none if nothing."""
        return {}


@dataclass(frozen=True)
class FromScratch(Settings, ABC):
    """What the model computes with in the place of dense weights W, which all go on being trained.

    Gradients go straight through: the one of what was computed with is taken for that of W.

    Args:
        every: optimizer steps between two choices of masks.
        decay: of what is pruned.
        tail: share of the steps, at the end, that are dense.
        mvue: sparsify gradients along the tokens.

    Attributes:
        tile: what divides the outputs of every layer, as the M of `groups` its inputs.
        decays: what `decay` is added to: the "gradient", before the optimizer, or the "weight", after it.
        holds: whether masks wait for Adam's means of squared gradients, which are held from then on.
    """

    tile: ClassVar[int] = 1
    decays: ClassVar[Literal["gradient", "weight"]] = "gradient"
    holds: ClassVar[bool] = False
    every: int = count(1)
    decay: float = within(0.0, least=0)
    tail: float = share(0.0)
    mvue: bool = False

    @property
    def groups(self) -> NM:
        """How many of how many neighbouring inputs are kept."""
        return NM(2, 4)

    @abstractmethod
    def mask(self, weight: Tensor) -> Tensor:
        """Return which weights are kept, bool [out, in]."""

    def factor(self, weight: Tensor) -> Tensor:
        """Return a number that is found once, before training, and kept."""
        return torch.ones((), device=weight.device)

    def shown(self, weight: Tensor, mask: Tensor, factor: Tensor) -> Tensor:
        """Return what the model computes with."""
        return torch.where(mask, weight, 0.0)

    def begins(self, step: int, total_steps: int, changes: Sequence[float], eps: float) -> bool:
        """Tell whether masks, if they wait, begin behind a step.

        Args:
            step: counted from 1.
            total_steps: of the run.
            changes: by how much the means of squares changed in the last steps, as many as such a mean remembers.
            eps: what the optimizer adds to their roots.
        """
        return True

    def remembered(self, since: int) -> int | None:
        """Return of how many steps the means that are held are taken to be; None takes them as they are stored."""
        return since

    def check(self, total_steps: int) -> None:
        """Refuse a run in which the masks that there are at first never move.

        Raises:
            RecipeError: see above.
        """
        if self.every >= total_steps:
            raise RecipeError(
                f"masks chosen every {self.every} steps never move in a run of {total_steps}: lower every"
            )

    def dense(self, step: int, total_steps: int) -> bool:
        """Tell whether the model computes with all of W in a step, counted from 1."""
        return self.tail > 0 and step > total_steps * (1.0 - self.tail)
