"""How long the runs of a sweep take, before the first: of commands that can time a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowdim.train.pretrain.recipe import Pretraining

_FREE = ("seed", "schedule", "clip", "decay", "evaluation", "save_seconds", "tensorboard", "keep")
"""Keys of a pre-training that change little or nothing of what a step takes."""


def pretraining(recipes: Sequence[Pretraining]) -> tuple[float, float]:
    """Return the seconds of the cheapest and the dearest of some pre-trainings by the plans of these two.

    Which they are is told by the FLOPs of their steps; recipes that differ in seeds and rates alone count once.

    Raises:
        LowdimError: one of them cannot be run.
    """
    from lowdim.train.pretrain import api
    from lowdim.train.pretrain.prepare import prepare

    kinds = list({repr(_kind(recipe)): recipe for recipe in recipes}.values())
    costs = list[float]()
    for recipe in kinds if len(kinds) > 1 else []:
        made = prepare(recipe)
        costs.append(made.flops * made.steps * recipe.batch * recipe.length)
    ends = {costs.index(min(costs)), costs.index(max(costs))} if costs else {0}
    seconds = [api.plan(kinds[index]).seconds or 0.0 for index in ends]
    return min(seconds), max(seconds)


def _kind(recipe: Pretraining) -> dict[str, Any]:
    """Return what of a recipe tells how long it takes."""
    found = {key: value for key, value in recipe.to_dict().items() if key not in _FREE}
    return {**found, "optimizer": found["optimizer"]["name"]}


def said(seconds: tuple[float, float] | None, left: int) -> str:
    """Say how long the runs that are left take.

    Args:
        seconds: of the cheapest and of the dearest; None where nobody knows.
        left: how many there are.

    Example:
        >>> said((600.0, 1800.0), 12)
        'By the plan: 12 runs of 10.0 to 30.0 min on all threads, 2.0 to 6.0 h in all, without the evaluations.'
        >>> said(None, 12)
        'How many hours they take is not known until the first run ends.'
    """
    if seconds is None:
        return "How many hours they take is not known until the first run ends."
    least, most = seconds
    if f"{least / 60:.1f}" == f"{most / 60:.1f}":
        each, hours = f"{most / 60:.1f} min", f"{left * most / 3600:.1f} h"
    else:
        each = f"{least / 60:.1f} to {most / 60:.1f} min"
        hours = f"{left * least / 3600:.1f} to {left * most / 3600:.1f} h"
    runs = f"{left} run{'s' * (left != 1)}"
    return f"By the plan: {runs} of {each} on all threads, {hours} in all, without the evaluations."
