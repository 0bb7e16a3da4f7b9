"""Chase: dynamic sparse training that ends with fewer channels."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from lowdim.core.errors import RecipeError
from lowdim.core.lazy import Lazy
from lowdim.core.schedule import cosine, power
from lowdim.core.settings import Moot, count, share, within
from lowdim.train.sparse.exchange import shrink
from lowdim.train.sparse.method import Method
from lowdim.train.sparse.moment import Moment

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from lowdim.train.dynamic import chase_channels
    from lowdim.train.sparse.layer import SparseLayer
else:
    chase_channels = Lazy("lowdim.train.dynamic.chase_channels")


@dataclass(frozen=True)
class Chase(Method):
    """Explore under a soft memory bound, and remove the channels that sparse training leaves poor.

    Every ``every`` steps, of all layers together, the smallest |w| go until the target is left, then weights grow
    where |gradient| is largest, up to b_t: b_t - d falls along a cosine from ``extra`` to 0 at the last such
    update, in the first part (``soft``) of the run. After it, ceil(zeta_t * kept) weights drop and the target is
    grown again; zeta_t falls along a cosine from ``drop`` to ``floor`` over the whole run.

    On a clock of its own, r_t = S_c * (1 - (1 - t / T)^3) of the output channels are removed, T being the last
    removal: those of the lowest mean |w| over the whole filter, zeros included (UMM), of all layers together. A
    layer keeps ``beta`` * (1 - S_c) of its channels at least. A removed channel loses its filter, its bias, what
    norms hold of it and the weights that multiply it, for good. `lowdim.train.slice_channels` then makes the small
    network. Which channels can go is found in the first forward pass (`lowdim.train.find_channels`); those of
    residual sums stay.

    Paper: "Dynamic Sparsity Is Channel-Level Sparsity Learner", NeurIPS 2023, arXiv 2305.19454. Its CIFAR-100 settings
    (160 epochs): ResNet-50 ``beta`` 0.5, ``channel_every`` 1000; VGG-19 ``beta`` 0.2, ``channel_every`` 8000.

    Args:
        every: optimizer steps between explorations.
        extra: share of all weights that may be active beyond the target at first.
        soft: share of the run under the soft bound.
        channels: S_c, the share of channels removed in the end, of the layers whose channels can go.
        channel_every: optimizer steps between removals, which come ``every`` // 2 steps before its multiples.
        channel_until: share of the run after which no channel is removed.
        beta: of the channels a layer would keep on average, the part that each does keep.
        score: "mean" |w| over the whole filter, the paper's UMM; or what its code has for contrast: the mean over its
            "active" weights, the share of its "connection"s that are not zero, or of its "kernel"s (2D slices) that
            are not.
        drop: zeta at the start of the run.
        floor: zeta at its end.

    Example:
        >>> method = Chase(every=10, soft=0.8, channel_every=20, channel_until=0.8)
        >>> [round(method.bonus(t, 100), 4) for t in (0, 40, 80)]
        [0.05, 0.025, 0.0]
        >>> [t for t in range(101) if method.removes(t, 100)]
        [15, 35, 55, 75]
        >>> [round(method.share(t, 100), 4) for t in (15, 75)]
        [0.244, 0.5]
    """

    needs_total: ClassVar[bool] = True
    changes_density: ClassVar[bool] = True
    refills: ClassVar[bool] = True
    wants_gradient: ClassVar[bool] = True
    moot: ClassVar[Moot] = dict.fromkeys(("channel_every", "channel_until", "beta", "score"), ("channels", (0,)))

    every: int = count(1000)
    extra: float = share(0.05)
    soft: float = share(0.8125)
    channels: float = within(0.5, least=0, below=1)
    channel_every: int = count(1000)
    channel_until: float = share(0.8125)
    beta: float = share(0.5)
    score: Literal["mean", "active", "connection", "kernel"] = "mean"
    drop: float = share(0.5)
    floor: float = share(0.005)

    # ---------------------------------------------------------------- when, and how much

    def sized(self, total: int, given: Collection[str] = ()) -> Self:
        """Return the method with an ``every`` and a ``channel_every`` of at most a tenth of the steps of removals."""
        most = max(1, int((self.channel_until if self.channels else 1.0) * total) // 10)
        clocks = {"every"} | ({"channel_every"} if self.channels else set())
        return dataclasses.replace(self, **{name: min(getattr(self, name), most) for name in clocks - set(given)})

    def check_length(self, total: int | None) -> None:
        """Refuse a run that is too short for a single removal, or for anything.

        Raises:
            RecipeError: see above.
        """
        if total is not None and self.channels and self._last_removal(total) <= 0:
            raise RecipeError(
                f"channel_every is {self.channel_every}, but channels are removed only up to step "
                f"{int(self.channel_until * total)} (channel_until); remove more often, or use channels=0.0"
            )
        super().check_length(total)

    def stands_still(self, total: int | None) -> str:
        """Say why neither an exploration nor a removal comes."""
        if total is None or self.every <= total or (self.channels and self._last_removal(total) > 0):
            return ""
        return (
            f"Chase would never move a mask: every is {self.every}, but the run ends at step {total}. Choose a smaller "
            "every"
        )

    def due(self, step: int, total: int | None) -> bool:
        """Tell whether masks move at a step."""
        return step % self.every == 0 or self.removes(step, total)

    def removes(self, step: int, total: int | None) -> bool:
        """Tell whether channels are removed at a step."""
        clock = (step + self.every // 2) % self.channel_every == 0
        return clock and self.channels > 0 and 0 < step <= self._last_removal(total)

    def _last_removal(self, total: int | None) -> int:
        assert total is not None
        shift = self.every // 2
        return (int(self.channel_until * total) + shift) // self.channel_every * self.channel_every - shift

    def _last_soft(self, total: int | None) -> int:
        assert total is not None
        return int(self.soft * total) // self.every * self.every

    def bonus(self, step: int, total: int | None) -> float:
        """Return b_t - d, the share of all weights that may be active beyond the target."""
        return cosine(step, self._last_soft(total), self.extra)

    def share(self, step: int, total: int | None) -> float:
        """Return r_t, the share of channels that are removed by a step."""
        return power(step, self._last_removal(total), 0.0, self.channels)

    def churn(self, step: int, total: int | None) -> float:
        """Return zeta_t, the share of weights that drop after the soft bound."""
        assert total is not None
        return cosine(step, total, self.drop, self.floor)

    # ---------------------------------------------------------------- what is done

    def overrules(self) -> str:
        """Say that the weights of all layers compete."""
        return "ranks the weights of all layers together"

    def check(self, layers: Sequence[SparseLayer]) -> None:
        """Refuse weights that are not held dense, or whose units are blocks."""
        for layer in layers:
            if layer.size != layer.parameter.numel():
                raise RecipeError(
                    f"Chase ranks single weights of all layers by their gradient, which {layer.name} does not give: "
                    "its weight must be held dense, with pattern 'unstructured'"
                )

    def observers(
        self, model: nn.Module, optimizer: Optimizer, layers: Sequence[SparseLayer], total: int | None
    ) -> dict[str, Any]:
        """Keep removed channels at zero."""
        if not self.channels:
            return {}
        return {"channels": chase_channels.Removal(model, optimizer, layers)}

    def update(self, moment: Moment) -> None:
        """Remove channels, explore, or both."""
        target = sum(moment.targets.values())
        if self.removes(moment.step, moment.total):
            removal: chase_channels.Removal = moment.observers["channels"]
            share = self.share(moment.step, moment.total)
            counted = self.score if self.score in ("connection", "kernel") else ""
            removal.take(removal.choose(share, self.channels, self.beta, self.score == "active", counted))
            assert moment.total is not None
            if moment.step > moment.total // self.every * self.every:  # no exploration comes to refill
                self._move(moment, _kept(moment), target)
        if moment.step % self.every:
            return
        if moment.step <= self._last_soft(moment.total):
            size = sum(layer.size for layer in moment.layers)
            self._move(moment, target, target + round(self.bonus(moment.step, moment.total) * size))
        else:
            gone = math.ceil(self.churn(moment.step, moment.total) * _kept(moment) - 1e-9)
            self._move(moment, _kept(moment) - gone, target)

    def shake(self, moment: Moment, fraction: float) -> None:
        """Drop ``fraction`` of the active weights once, and grow as many, of all layers together."""
        kept = _kept(moment)
        self._move(moment, kept - int(fraction * kept), kept)

    def _move(self, moment: Moment, keep: int, active: int) -> None:
        """Keep at most so many of the largest weights, then grow up to ``active``."""
        shrink(moment.layers, min(keep, active))
        removal = moment.observers.get("channels")
        barred = {layer.name: removal.excluded(layer) if removal else layer.positions()[:0] for layer in moment.layers}
        if moment.awake:
            chase_channels.grow(moment.awake, barred, active - _kept(moment))
        if _kept(moment) < min(active, sum(moment.targets.values())) and "full" not in moment.memory:
            moment.memory["full"] = moment.step
            warnings.warn(
                f"the channels that remain have room for {_kept(moment)} weights, fewer than the {active} that step "
                f"{moment.step} should have: the network becomes sparser than asked for. Remove fewer channels",
                stacklevel=2,
            )


def _kept(moment: Moment) -> int:
    return sum(layer.kept for layer in moment.layers)
