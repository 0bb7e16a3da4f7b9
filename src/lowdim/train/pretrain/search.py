"""The search for the decay of pruned weights: short warm-ups, whose masks flip a little less than dense ones would."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from lowdim.core.errors import LowdimError, RecipeError
from lowdim.core.progress import Progress, Silent
from lowdim.core.settings import Range, check
from lowdim.train.nm.base import FromScratch
from lowdim.train.nm.from_scratch import SparseFromScratch
from lowdim.train.pretrain.engine import Engine
from lowdim.train.pretrain.prepare import Prepared
from lowdim.train.pretrain.recipe import Pretraining
from lowdim.train.pretrain.together import together

DECAYS = (6e-6, 6e-5, 2e-4, 1e-3)
"""What the authors of FST trained their models with."""


@dataclass(frozen=True)
class Tried:
    """One warm-up.

    Attributes:
        decay: of what is pruned.
        flip_rate: share of the masks' entries that changed sides between two choices, in the mean.
        ratio: over that of the dense warm-up, mu in the paper.
        loss: mean training loss of a token.
    """

    decay: float
    flip_rate: float
    ratio: float
    loss: float


@dataclass(frozen=True)
class Searched:
    """What a search found.

    Attributes:
        steps: of each warm-up.
        choices: of masks in it.
        flip_rate: of the masks that there would be in the dense one.
        loss: of the dense one.
        least: ratio that is wanted at least.
        most: ratio that is wanted at most.
        tried: the others, by decay.
        decay: whose ratio is nearest to the middle of what is wanted; None where none is in it.
    """

    steps: int
    choices: int
    flip_rate: float
    loss: float
    least: float
    most: float
    tried: tuple[Tried, ...]
    decay: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return asdict(self)

    def sentence(self) -> str:
        """Return what is recommended."""
        band = f"between {self.least:g} and {self.most:g} times those of a dense warm-up"
        if self.decay is not None:
            found = next(each for each in self.tried if each.decay == self.decay)
            return (
                f"from-scratch.decay={self.decay:g}: its masks flip {found.ratio:.2f} times as often; wanted is {band}."
            )
        low = [each.decay for each in self.tried if each.ratio > self.most]
        high = [each.decay for each in self.tried if each.ratio < self.least]
        where = f"above {max(low):g}" if not high else f"below {min(high):g}" if not low else "between those tried"
        return f"No decay that was tried lets masks flip {band}. Try decays {where}."


def search_decay(
    recipe: Pretraining,
    decays: Sequence[float] = DECAYS,
    *,
    steps: int | None = None,
    least: float = 0.6,
    most: float = 0.95,
    progress: Progress | None = None,
) -> Searched:
    """Find the decay of what is pruned by how often masks flip in the warm-up, for 2:4 training from scratch.

    The first steps of the recipe's run are trained once dense, where the flips are those of the masks that there would
    be, and once with each decay. Too little decay, and masks flip as often or more; too much, and they stay where they
    began. Nothing is written but tokens to the cache.

    Source: FST, arXiv 2404.01847, section 4; its range of ratios, 0.60 to 0.95, is from memory.

    Args:
        recipe: with ``from-scratch``; its own decay does not matter.
        decays: to try, 0 and more.
        steps: of each warm-up; None takes those of the schedule.
        least: ratio of flips that is wanted at least.
        most: ratio of flips that is wanted at most.
        progress: told of each warm-up.

    Raises:
        RecipeError: there is nothing to search for, or no room for two choices of masks.
        LowdimError: as of `lowdim.train.pretrain.api.pretrain`; or no mask flips in the dense warm-up.
    """
    rule = recipe.from_scratch
    if rule is None or rule.holds:
        why = "is not set" if rule is None else "lets masks wait, so that none flips in the warm-up"
        raise RecipeError(f"the decay is one of from-scratch, which {why}. Set it, for example from-scratch=fst.")
    for decay in decays:
        check("decays", decay, Range(least=0, below=math.inf))
    check("least", least, Range(least=0))
    check("steps", steps, Range(least=1, whole=True, optional=True))
    if not decays or not least < most < math.inf:
        raise RecipeError(f"give a decay to try, and least below most; got {list(decays)}, {least:g} and {most:g}.")
    return _Search().search(recipe, rule, sorted(set(decays)), steps, (least, most), progress or Silent())


class _Search(Engine):
    """Warm-ups of one recipe."""

    def search(
        self,
        recipe: Pretraining,
        rule: FromScratch,
        decays: Sequence[float],
        steps: int | None,
        band: tuple[float, float],
        progress: Progress,
    ) -> Searched:
        """Train the warm-ups; see `search_decay`."""
        with together(recipe):
            prepared = self._prepared(recipe, progress)
            steps = math.ceil(recipe.schedule.warm(prepared.steps)) if steps is None else steps
            if not 2 * rule.every <= steps <= prepared.steps:
                raise RecipeError(
                    f"a warm-up of {steps} steps is to hold two choices of masks, one every {rule.every} steps "
                    f"(from-scratch.every), and be no longer than the run's {prepared.steps}. Set steps."
                )
            with progress.stage("Search", len(decays) + 1, "warm-ups") as stage:
                choices, dense, loss = self._flips(prepared, replace(rule, tail=1.0), steps)
                stage.advance()
                if not dense:
                    raise LowdimError(f"no mask would flip in a dense warm-up of {steps} steps. Take more steps.")
                tried = []
                for decay in decays:
                    _, flips, lost = self._flips(prepared, replace(rule, decay=decay, tail=0.0), steps)
                    tried.append(Tried(decay, flips, flips / dense, lost))
                    stage.advance()
        fitting = [each for each in tried if band[0] <= each.ratio <= band[1]]
        best = min(fitting, key=lambda each: abs(each.ratio - sum(band) / 2), default=None)
        return Searched(steps, choices, dense, loss, *band, tuple(tried), None if best is None else best.decay)

    def _flips(self, prepared: Prepared, rule: FromScratch, steps: int) -> tuple[int, float, float]:
        """Return how often masks were chosen in a warm-up, the mean flip rate, and the mean loss."""
        run = self.begin(replace(prepared, recipe=prepared.recipe.model_copy(update={"from_scratch": rule})))
        with torch.random.fork_rng([prepared.device] if prepared.device.type == "cuda" else []):
            loss = run.loop.run(run.batches.between(0, steps))
        (masks,) = (rider for rider in run.loop.riders if isinstance(rider, SparseFromScratch))
        rates = [choice["flip_rate"] for choice in masks.history]
        return len(rates), sum(rates) / len(rates), loss
