"""What every method of sparse training answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from lowdim.core.errors import RecipeError
from lowdim.core.schedule import cosine
from lowdim.core.settings import Settings, count, share
from lowdim.core.transition import whole
from lowdim.train.sparse.exchange import Candidates, replace
from lowdim.train.sparse.moment import Moment, Order

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from lowdim.train.sparse.layer import Layer


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

    @property
    def wants_every_gradient(self) -> bool:
        """Whether it looks at the gradient of weights that are off at every step, not at updates alone."""
        return False

    def due(self, step: int, total: int | None) -> bool:
        """Tell whether masks move at a step."""
        return False

    def check_length(self, total: int | None) -> None:
        """Refuse a run of so many optimizer steps.

        Raises:
            RecipeError: the method needs to know the number, or can do nothing within it.
        """
        if self.needs_total and total is None:
            raise RecipeError(
                f"{type(self).__name__} has a schedule over the whole run: give total_steps, its optimizer steps"
            )

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

    def check_length(self, total: int | None) -> None:
        """Refuse a run that ends before the first update, without which the density would not change."""
        super().check_length(total)
        if self.changes_density and self.every > self.last(total):
            raise RecipeError(
                f"{type(self).__name__} would never prune: every is {self.every}, but it ends at step "
                f"{self.last(total):g} (until * total_steps). Choose a smaller every"
            )

    def last(self, total: int | None) -> float:
        """Return the step after which masks stand still."""
        assert total is not None, "SparseTraining asks for total_steps where needs_total is set"
        return self.until * total

    def due(self, step: int, total: int | None) -> bool:
        """Tell whether masks move at a step: a multiple of ``every`` up to the last."""
        if step % self.every or (self.rests_at_last and step == total):
            return False
        return total is None or step <= self.last(total)


class Regrows(Periodic):
    """A method whose layers lose a share zeta_t of their weights at an update and gain as many.

    zeta_t = floor + (drop - floor) / 2 * (1 + cos(pi t / T)) over the whole run. Each method decides which of these are
    settings of its own, and in what order.

    Attributes:
        drop: zeta at the start.
        floor: zeta at the end.
        candidates: what may grow: "any" weight that is off; only "new" ones, not those just dropped; or "live" ones, of
            outputs that keep a weight. Behind a batch norm the gradients of an output without weights are up to
            1 / sqrt(eps) = 316 times too large, and in small networks at 98% and beyond most growth is lost there.
    """

    needs_total: ClassVar[bool] = True

    drop: float
    floor: float = 0.0
    candidates: Candidates = "any"

    def check(self, layers: Sequence[Layer]) -> None:
        """Refuse to grow new weights alone where a group may have none to give."""
        if self.candidates == "new":
            refuse_groups(layers, "candidates='new'", "'any'")

    def share(self, step: int, total: int | None) -> float:
        """Return zeta_t."""
        assert total is not None, "SparseTraining asks for total_steps where needs_total is set"
        return cosine(step, total, self.drop, self.floor)

    def regrow(self, moment: Moment, fraction: float, drop: str, grow: str) -> None:
        """Drop ceil(``fraction`` * kept) weights of each layer by one rule and grow as many by another."""
        for layer in moment.layers:
            count = math.ceil(fraction * layer.kept - 1e-9)
            replace(moment, layer, count, drop, grow, self.candidates)


def written(method: Method, before: Mapping[str, Any]) -> str:
    """Return a method as checkpoints hold it, without settings that are what they were ``before`` they had a name."""
    shown = {field.name: getattr(method, field.name) for field in fields(method)}
    told = [f"{name}={value!r}" for name, value in shown.items() if name not in before or value != before[name]]
    return f"{type(method).__name__}({', '.join(told)})"


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
