"""What every method of sparse training answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from lowdim.core.errors import RecipeError, suggest

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
        from lowdim.core.random import generator

        return generator(self.seed, purpose, self.step, layer.name)


@dataclass(frozen=True)
class Method:
    """When masks move, and how. Subclasses are frozen dataclasses of a paper's hyper-parameters."""

    needs_total: ClassVar[bool] = False
    changes_density: ClassVar[bool] = False
    order: ClassVar[Order] = "after_step"

    def __post_init__(self) -> None:
        check_words(self)

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
        from lowdim.core.transition import whole
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

    every: int = 100
    until: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.every, int) or self.every < 1:
            raise RecipeError(
                f"every must be a whole number of optimizer steps, at least 1; got {self.every!r}"
            )
        in_unit("until", self.until)

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


def in_unit(name: str, value: float) -> None:
    """Refuse a share outside of [0, 1].

    Raises:
        RecipeError: names the setting and its value.
    """
    if not 0.0 <= value <= 1.0:
        raise RecipeError(f"{name} must be between 0 and 1; got {value!r}")


def check_words(settings: object) -> None:
    """Refuse a word that is none of those that its setting's type, a ``Literal``, lists.

    Raises:
        RecipeError: names the setting, its value and the nearest option.
    """
    for name, hint in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        if get_origin(hint) is Literal and value not in get_args(hint):
            raise RecipeError(f"{name} {value!r} is unknown. {suggest(str(value), get_args(hint))}")
