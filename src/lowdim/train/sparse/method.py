"""What every method of sparse training answers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

from lowdim.core.allocation import ERK, Allocation
from lowdim.core.errors import RecipeError
from lowdim.core.schedule import cosine
from lowdim.core.settings import Settings, count, share
from lowdim.core.transition import whole
from lowdim.train.sparse.exchange import Candidates, replace
from lowdim.train.sparse.moment import Moment, Order

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from lowdim.core.pattern.units import Units
    from lowdim.train.sparse.layer import SparseLayer


@dataclass(frozen=True)
class Method(Settings):
    """When masks move, and how. Subclasses are frozen dataclasses of a paper's hyper-parameters.

    Attributes:
        wants_gradient: whether an update looks at the step's gradient, of active weights or of those that are off.
    """

    wants_gradient: ClassVar[bool] = False
    needs_total: ClassVar[bool] = False
    moves: ClassVar[bool] = True
    changes_density: ClassVar[bool] = False
    refills: ClassVar[bool] = False
    """Whether a method that changes the density grows layers up to the target, too."""
    order: ClassVar[Order] = "after_step"

    def initial(self, sparsity: float) -> float:
        """Return the sparsity at the start of a run that ends with ``sparsity``."""
        return sparsity

    @property
    def wants_every_gradient(self) -> bool:
        """Whether it looks at the gradient of weights that are off at every step, not at updates alone."""
        return False

    def due(self, step: int, total: int | None) -> bool:
        """Tell whether masks move at a step."""
        return False

    def sized(self, total: int, given: Collection[str] = ()) -> Self:
        """Return the method as it suits a run of so many optimizer steps; its settings that are ``given`` stay."""
        return self

    def check_length(self, total: int | None) -> None:
        """Refuse a number of optimizer steps with which the method cannot work.

        Raises:
            RecipeError: the method needs to know the number, or changes the density and can do nothing within it.
        """
        if self.needs_total and total is None:
            raise RecipeError(
                f"{type(self).__name__} has a schedule over the whole run: give total_steps, its optimizer steps"
            )
        if self.changes_density and (why := self.stands_still(total)):
            raise RecipeError(why)

    def stands_still(self, total: int | None) -> str:
        """Say why a method that moves masks would never move one in such a run; nothing if it will."""
        return ""

    def overrules(self) -> str:
        """Say why it matters to no layer, once there are masks, what an allocation gives it; nothing if it does."""
        return "" if self.changes_density else "leaves every layer at what it keeps"

    def check_spread(self, allocation: Allocation, sparsity: float) -> None:
        """Refuse an allocation by which nothing goes: which layers are sparse, the masks drawn at first, the method.

        Raises:
            RecipeError: see above.
        """
        if allocation == ERK() or allocation.takes_classifier:
            return
        if self.initial(sparsity) == 0 < sparsity and (why := self.overrules()):
            raise RecipeError(
                f"allocation {allocation} changes nothing: all weights are there at first, and {type(self).__name__} "
                f"{why}. Leave allocation out, or start with zeros"
            )

    def check_budget(self, units: Mapping[str, Units], first: int, last: int) -> None:
        """Refuse to begin with ``first`` units and to end with ``last``, where the method cannot go there.

        Raises:
            RecipeError: they differ by more than rounding, and the method cannot.
        """
        size, rounding = sum(u.size for u in units.values()), sum(u.groups for u in units.values())
        if abs(first - last) <= max(rounding, 0.005 * size) or (
            self.changes_density and (first > last or self.refills)
        ):
            return
        raise RecipeError(
            f"masks keeps {first} of {size} units ({1 - first / size:.2%} zeros), sparsity is {1 - last / size:.2%}, "
            f"and {type(self).__name__} does not get from one to the other. Leave sparsity out, or give masks of it"
        )

    def check(self, layers: Sequence[SparseLayer]) -> None:
        """Refuse layers that the method cannot train.

        Raises:
            RecipeError: names the layer and the remedy.
        """

    def observers(
        self, model: nn.Module, optimizer: Optimizer, layers: Sequence[SparseLayer], total: int | None
    ) -> dict[str, Any]:
        """Attach what acts between updates; each has ``state_dict``, ``load_state_dict`` and ``remove``."""
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

    def sized(self, total: int, given: Collection[str] = ()) -> Self:
        """Return the method with an ``every`` of at most a tenth of the steps in which masks move."""
        if "every" in given:
            return self
        return dataclasses.replace(self, every=min(self.every, max(1, int(self.last(total)) // 10)))

    def stands_still(self, total: int | None) -> str:
        """Say why no mask would ever move; the first update is the earliest that can come."""
        if total is None or (self.due(self.every, total) and self.every <= self.last(total)):
            return ""
        return (
            f"{type(self).__name__} would never {'prune' if self.changes_density else 'move a mask'}: every is "
            f"{self.every}, but it ends at step {self.last(total):g} (until * total_steps). Choose a smaller every"
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
    settings, and in what order.

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

    def check(self, layers: Sequence[SparseLayer]) -> None:
        """Refuse to grow only new weights where a group may have none left."""
        if self.candidates == "new":
            refuse_groups(layers, "candidates='new'", "'any'")

    def share(self, step: int, total: int | None) -> float:
        """Return zeta_t."""
        assert total is not None, "SparseTraining asks for total_steps where needs_total is set"
        return cosine(step, total, self.drop, self.floor)

    def update(self, moment: Moment) -> None:
        """Drop and grow the share zeta_t, layer by layer."""
        self.shake(moment, self.share(moment.step, moment.total))

    def regrow(self, moment: Moment, fraction: float, drop: str, grow: str) -> None:
        """Drop ceil(``fraction`` * kept) weights of each layer by one rule and grow as many by another."""
        for layer in moment.awake:
            count = math.ceil(fraction * layer.kept - 1e-9)
            replace(moment, layer, count, drop, grow, self.candidates)


def written(method: Method, before: Mapping[str, Any]) -> str:
    """Return a method as checkpoints hold it, without settings that are what they were ``before`` they had a name."""
    shown = {field.name: getattr(method, field.name) for field in fields(method)}
    told = [f"{name}={value!r}" for name, value in shown.items() if name not in before or value != before[name]]
    return f"{type(method).__name__}({', '.join(told)})"


def refuse_groups(layers: Sequence[SparseLayer], setting: str, remedy: str) -> None:
    """Refuse a setting where groups of weights keep their own numbers.

    Raises:
        RecipeError: names the setting, the layer and the remedy.
    """
    for layer in layers:
        if layer.units.groups > 1:
            raise RecipeError(
                f"{setting} does not work with groups that keep their own number ({layer.name}); use {remedy}"
            )
