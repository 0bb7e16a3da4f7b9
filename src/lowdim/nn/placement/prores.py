"""ProRes: branches that come in one after another while training begins."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from lowdim.core.errors import LowdimError, RecipeError
from lowdim.core.settings import count
from lowdim.nn.placement.over import Over
from lowdim.nn.residual.rule import Rule

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class ProRes(Over):
    """Both branches of block l count with the share ``a = min(t / (T l), 1)`` after t optimizer steps.

    Shallow blocks learn first, and deep ones on top of what those have learnt. At t = 0 every block of a Pre-LN
    network passes the stream on as it is; from T L steps on the network computes what it would without. The share is a
    factor of what a branch adds: after the norm, if one takes what leaves it.

    The shares are buffers, ``BLOCK.prores.a``, saved with the weights. `set_step` sets them; the rider
    `lowdim.train.riders.prores.ResidualWarmup` does so after every step, from the step that they are at (`step_of`).
    After the last, `fold_` takes them away.

    The paper's code takes T L, the steps until the last block counts in full.

    Paper: "Progressive Residual Warmup for Language Model Pretraining", arXiv 2603.05369.

    Args:
        steps: T, optimizer steps until the first block counts in full; the paper takes 1000, 500 from 96 blocks on.
        schedule: "linear" as above; "equal": all blocks as the last; "reverse": the last block first; "sqrt" and
            "square": the share is the root, or the square, of the linear one. The paper finds "linear" the safe one.

    Example:
        >>> from lowdim.nn.residual.rule import PRE
        >>> rule = ProRes(steps=1000).rule(2, 12, PRE)
        >>> share_at(rule, 1000), share_at(rule, 2000), share_at(rule, 9999)
        (0.5, 1.0, 1.0)
    """

    steps: int = count(1000, why="optimizer steps until the first block counts in full")
    schedule: Literal["linear", "equal", "reverse", "sqrt", "square"] = "linear"

    def changed(self, rule: Rule, block: int, count: int) -> Rule:
        """Return the rule with a ramp."""
        if rule.ramp:
            raise RecipeError("over has a ramp already: ProRes over ProRes would slow it twice. Name what is below")
        blocks = {"equal": count, "reverse": count - block + 1}.get(self.schedule, block)
        power = {"sqrt": 0.5, "square": 2.0}.get(self.schedule, 1.0)
        return replace(rule, ramp=float(self.steps * blocks), power=power)


def share_at(rule: Rule, step: int) -> float:
    """Return how much of a branch counts after so many optimizer steps."""
    return float(min(step / rule.ramp, 1.0) ** rule.power) if rule.ramp else 1.0


def set_step(model: nn.Module, step: int) -> bool:
    """Set how much of each branch counts after so many optimizer steps.

    Args:
        model: with ProRes, wrapped or not.
        step: optimizer steps done; 0 before the first.

    Returns:
        Whether all count in full.

    Raises:
        LowdimError: the model has no ProRes.
    """
    ramps = _ramps(model)
    shares = [share_at(rule, step) for rule, _ in ramps]
    for (_, held), share in zip(ramps, shares, strict=True):
        held.fill_(share)
    return min(shares) == 1.0


def step_of(model: nn.Module) -> int:
    """Return after how many optimizer steps the branches count as they do now; 0 for a model just placed.

    Args:
        model: with ProRes, wrapped or not.

    Returns:
        The steps; of a ramp that has ended, those at which it ended.

    Raises:
        LowdimError: the model has no ProRes.
    """
    ramps = [(rule, float(held)) for rule, held in _ramps(model)]
    rising = [round(share ** (1 / rule.power) * rule.ramp) for rule, share in ramps if share < 1.0]
    return max(rising) if rising else math.ceil(max(rule.ramp for rule, _ in ramps))


def _ramps(model: nn.Module) -> list[tuple[Rule, Tensor]]:
    """Return the rule and the share of every block that has a ramp."""
    from lowdim.nn.residual.block import is_placed  # torch

    found = [block for block in model.modules() if is_placed(block) and block.placed.rule.ramp]
    if not found:
        raise LowdimError("the model has no ProRes, so that there is no ramp to set. Apply ProRes(...) first")
    return [(block.placed.rule, block.prores.a) for block in found]  # type: ignore[misc, union-attr]
