"""What every method of sparse training answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lowdim.core.errors import RecipeError
from lowdim.core.random import generator
from lowdim.core.settings import Settings, count, share
from lowdim.core.transition import whole

if TYPE_CHECKING:
    from torch import Generator, nn
    from torch.optim import Optimizer

    from lowdim.train.sparse.layer import Explored, Layer

Order = Literal["after_step", "replace_step"]
Candidates = Literal["any", "new", "live"]
Regrow = Literal["normal", "uniform", "zero"]


@dataclass
class Moment:
    """One mask update, as a method sees it.

    Attributes:
        step: optimizer steps done, this one included, from 1.
        total: optimizer steps of the whole run.
        layers: the sparse weights.
        targets: units that each layer keeps at the end.
        explored: the units of each layer that were ever active.
        seed: of the run.
        memory: what the method remembers between updates; tensors, numbers and strings, saved with the run.
        observers: what `Method.observers` returned.
    """

    step: int
    total: int | None
    layers: Sequence[Layer]
    targets: Mapping[str, int]
    explored: Mapping[str, Explored]
    seed: int
    memory: dict[str, Any] = field(default_factory=dict)
    observers: Mapping[str, Any] = field(default_factory=dict)

    def generator(self, layer: Layer, purpose: str) -> Generator:
        """Return the random numbers of one purpose, which depend on seed, step and the layer's name alone."""
        return generator(self.seed, purpose, self.step, layer.name)


@dataclass(frozen=True)
class Method(Settings):
    """When masks move, and how. Subclasses are frozen dataclasses of a paper's hyper-parameters."""

    needs_total: ClassVar[bool] = False
    moves: ClassVar[bool] = True
    changes_density: ClassVar[bool] = False
    order: ClassVar[Order] = "after_step"

    def initial(self, sparsity: float) -> float:
        """Return the sparsity at the start of a run that ends with ``sparsity``."""
        return sparsity

    @property
    def wants_gradient(self) -> bool:
        """Whether an update looks at the gradient of weights that are off, or at the step's gradient at all."""
        return False

    def due(self, step: int, total: int | None) -> bool:
        """Tell whether masks move at a step."""
        return False

    def check(self, layers: Sequence[Layer]) -> None:
        """Refuse layers that the method cannot train.

        Raises:
            RecipeError: names the layer and the remedy.
        """

    def observers(
        self, model: nn.Module, optimizer: Optimizer, layers: Sequence[Layer], total: int | None
    ) -> dict[str, Any]:
        """Attach what sees or does something between updates; each has ``state``, ``load`` and ``remove``."""
        return {}

    def update(self, moment: Moment) -> None:
        """Move the layers' masks."""

    def shake(self, moment: Moment, fraction: float) -> None:
        """Drop ``fraction`` of the active weights of every layer once, and grow as many."""
        from lowdim.train.sparse.exchange import replace

        for layer in moment.layers:
            replace(moment, layer, whole(fraction * layer.kept), "magnitude", "gradient")


@dataclass(frozen=True)
class Periodic(Method):
    """A method that acts every so many steps, until some share of the run.

    Attributes:
        every: optimizer steps between mask updates.
        until: share of the run, 0 to 1, after which masks stand still.
    """

    rests_at_last: ClassVar[bool] = False
    """Whether masks stand still at the last step, because new weights would never be trained."""

    every: int = count(100)
    until: float = share(1.0)

    def last(self, total: int | None) -> float:
        """Return the step after which masks stand still."""
        assert total is not None, "SparseTraining asks for total_steps where needs_total is set"
        return self.until * total

    def due(self, step: int, total: int | None) -> bool:
        """Tell whether masks move at a step: a multiple of ``every`` up to the last."""
        if step % self.every or (self.rests_at_last and step == total):
            return False
        return total is None or step <= self.last(total)


def refuse_groups(layers: Sequence[Layer], setting: str, remedy: str) -> None:
    """Refuse a setting where groups of weights keep their own numbers.

    Raises:
        RecipeError: names the setting, the layer and the remedy.
    """
    for layer in layers:
        if layer.units.groups > 1:
            raise RecipeError(
                f"{setting} does not work with groups that keep their own number ({layer.name}); use {remedy}"
            )
