"""SET: drop the weights nearest to zero, grow at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar, Literal

from lowdim.core.errors import RecipeError
from lowdim.core.settings import share
from lowdim.core.transition import drop_by_sign, whole
from lowdim.train.sparse.exchange import Regrow, exchange, kept
from lowdim.train.sparse.method import Periodic
from lowdim.train.sparse.moment import Moment

if TYPE_CHECKING:
    from lowdim.train.sparse.layer import SparseLayer


@dataclass(frozen=True)
class SET(Periodic):
    """Of every layer's positive weights the share ``drop`` nearest to zero goes, likewise of the negative ones.

    As many new weights are drawn uniformly among the positions that are free by then, with values N(0, 0.1^2) and an
    optimizer state of zero. Kept weights keep both.

    Paper: "Scalable training of artificial neural networks with adaptive sparse connectivity inspired by network
    science", Nature Communications 2018, arXiv 1707.04780. It updates once per epoch, so ``every`` is the number of
    batches of an epoch.

    Args:
        every: optimizer steps between updates.
        until: share of the run after which masks stand still; 1 needs no ``total_steps``, though with it the last step
            of the run moves no mask.
        drop: zeta, share of the weights of either sign that goes.
        rule: "sign-share", the paper's, or "sign-count", as many weights of either sign, which later code calls SET.
        regrow: "normal", the paper's; "uniform" in +-sqrt(6 / inputs); or "zero", as dense-mask code has it.

    Example:
        >>> SET(every=100).due(200, None)
        True
    """

    drop: float = share(0.3)
    rule: Literal["sign-share", "sign-count"] = "sign-share"
    regrow: Regrow = "normal"

    rests_at_last: ClassVar[bool] = True

    def check(self, layers: Sequence[SparseLayer]) -> None:
        """Refuse to grow blocks with random values, which are meant for single weights."""
        blocks = [layer.name for layer in layers if layer.size != prod(layer.shape)]
        if blocks and self.regrow != "zero":
            raise RecipeError(f"{blocks[0]} is sparse by blocks, which grow from zeros: use SET(regrow='zero')")

    def update(self, moment: Moment) -> None:
        """Drop by sign and grow at random, layer by layer."""
        self.shake(moment, self.drop)

    def shake(self, moment: Moment, fraction: float) -> None:
        """Do one update that drops ``fraction``."""
        for layer in moment.layers:
            if self.rule == "sign-share":
                keep = drop_by_sign(layer.values(), fraction)
            else:
                keep = kept(moment, layer, whole(fraction * layer.kept), "sign-count")
            if not bool(keep.all()):
                exchange(moment, layer, keep, "random", regrow=self.regrow)
