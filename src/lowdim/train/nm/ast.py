"""AST: retrain kept and pruned weights alike, let the pruned ones decay ever faster, and choose the mask anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lowdim.core.errors import RecipeError
from lowdim.core.registry import find
from lowdim.core.settings import Moot, count, share, within
from lowdim.train.nm.base import MaskRule, Start

if TYPE_CHECKING:
    from lowdim.train.nm.riders import MaskRider


@dataclass(frozen=True)
class AST(MaskRule):
    """Annealed SR-STE: the model computes with m * W, and its gradient goes straight through to all of W.

    At step t the optimizer gets dL/d(m * W) + lambda_t * (1 - m) * W, where lambda_t = ``decay`` * min(1, t / T_0) and
    T_0 = ``ramp`` * total steps. Little decay at first lets weights come back, more of it later lets masks settle.
    Every ``every`` steps m is drawn anew from ``score``, with as many kept weights in each layer as before. A pruned
    weight without a gradient shrinks; a kept one knows no decay.

    SLoRB stands beside the masked product: y = (m * W) x + S (P x), where P x are the sums of ``slorb`` neighbouring
    inputs. It is dense, and costs bytes and time of its own; see `lowdim.nn.slorb`.

    Paper: "Pruning Large Language Models with Semi-Structural Adaptive Sparse Training", AAAI 2025, arXiv 2407.20584.
    It retrains GPT-2 with ``decay`` 6e-5 to 1e-4, ``ramp`` 0.25, ``every`` 10, ``slorb`` 16, and distillation.

    Args:
        decay: lambda, once it is full. It is added to gradients, so that its right size depends on theirs: look at how
            many weights change sides.
        ramp: T_0 as a share of the run; 0 is full decay from the first step.
        every: optimizer steps from one choice of masks to the next; there is none after the last step.
        score: what masks are chosen by: "magnitude", |W|, or "wanda", |W| times the size of the inputs, which is
            measured once, before training.
        slorb: k, the inputs that SLoRB adds up, such as 16; 0 is none.
        slorb_init: S at first: the "mean" of the pruned weights of each row and k inputs, over all k, or their "sum".
        slorb_trains_p: whether the weights of SLoRB's sums, one per input and 1 at first, are trained too.

    Example:
        >>> [round(AST(decay=0.8, ramp=0.5).decay_at(step, 8), 3) for step in (1, 2, 4, 8)]
        [0.2, 0.4, 0.8, 0.8]
    """

    moves: ClassVar[bool] = True
    moot: ClassVar[Moot] = {"ramp": ("decay", (0,)), **dict.fromkeys(("slorb_init", "slorb_trains_p"), ("slorb", (0,)))}

    decay: float = within(6e-5, least=0)
    ramp: float = share(0.25)
    every: int = count(10)
    score: Literal["magnitude", "wanda"] = "magnitude"
    slorb: int = count(0, least=0)
    slorb_init: Literal["mean", "sum"] = "mean"
    slorb_trains_p: bool = False

    def ride(self, start: Start) -> MaskRider:
        """Let the masks move."""
        from lowdim.train.nm.adaptive import AdaptiveMasks  # which needs torch, and a recipe is refused without it

        return AdaptiveMasks(
            start.parameters,
            start.masks,
            start.pattern,
            self,
            start.optimizer,
            start.total_steps,
            column_scales=start.scales() if find("score", self.score).load().needs else None,
            transposed=start.transposed,
        )

    def check(self, total_steps: int) -> None:
        """Refuse a run in which masks never move."""
        if self.every >= total_steps:
            raise RecipeError(
                f"masks that are chosen every {self.every} steps never move in a run of {total_steps}: choose a "
                "smaller every, or fixed masks"
            )

    def beside(self) -> Mapping[str, Any]:
        """Return the settings of SLoRB, if there is one."""
        return {"k": self.slorb, "init": self.slorb_init, "trains_p": self.slorb_trains_p} if self.slorb else {}

    def decay_at(self, step: int, total_steps: int) -> float:
        """Return lambda_t at a step, counted from 1."""
        full = self.ramp * total_steps
        return self.decay * min(1.0, step / full) if full else self.decay
