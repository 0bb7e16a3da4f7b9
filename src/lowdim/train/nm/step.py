"""STEP: N:M weights whose masks wait for Adam's variance, which is held from then on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lowdim.core.errors import RecipeError
from lowdim.core.settings import share, within
from lowdim.train.nm.sr_ste import SRSTE


@dataclass(frozen=True)
class STEP(SRSTE):
    """Two phases: dense Adam until its variance V stands still, then N:M masks at every step with that V, held.

    Gradients of masked weights make poor estimates of V. So Z_t = mean |V_t - V_(t-1)| over the layers is watched, and
    the second phase begins once the mean of the last 1 / (1 - beta2) of them is below ``threshold``, but between the
    shares ``least`` and ``most`` of the steps in any case. From then on W <- W - lr M / (sqrt(V*) + eps), M Adam's
    corrected mean of straight-through gradients, V* as it was.

    Paper: "STEP: Learning N:M Structured Sparsity Masks from Scratch with Precondition", ICML 2023, arXiv 2302.01172.

    Args:
        every: optimizer steps between two choices of masks.
        decay: of what is pruned, on the weights; none here.
        tail: share of the steps, at the end, that are dense; none here.
        mvue: sparsify gradients along the tokens, as in FST.
        pattern: N:M.
        least: share of the steps before which masks never begin.
        most: share of the steps behind which they do, whatever Z says.
        threshold: of Z; None is the eps of the optimizer.
        corrected: divide V* by 1 - beta2^t, as Adam does in its last dense step t; if not, as it is stored.

    Example:
        >>> rule = STEP(threshold=0.1)
        >>> [rule.begins(step, 100, [0.05], 1e-8) for step in (10, 11)], rule.begins(50, 100, [1.0], 1e-8)
        ([False, True], False)
    """

    holds: ClassVar[bool] = True
    decay: float = within(0.0, least=0)
    least: float = share(0.1)
    most: float = share(0.5)
    threshold: float | None = within(None, least=0)
    corrected: bool = True

    def __post_init__(self) -> None:
        """Refuse bounds that cross.

        Raises:
            RecipeError: names both.
        """
        super().__post_init__()
        if self.least > self.most:
            raise RecipeError(f"least={self.least} is above most={self.most}. Masks begin between the two shares.")

    def begins(self, step: int, total_steps: int, changes: Sequence[float], eps: float) -> bool:
        """Tell whether masks begin behind a step, counted from 1."""
        still = sum(changes) / len(changes) < (eps if self.threshold is None else self.threshold)
        return step > self.most * total_steps or (still and step > self.least * total_steps)

    def remembered(self, since: int) -> int | None:
        """Return the steps that V* is the mean of, if it is corrected."""
        return since if self.corrected else None
