"""How two models answered the same questions."""

from __future__ import annotations

from collections.abc import Mapping

from lowdim.evaluate.quality.hard import Answers
from lowdim.evaluate.quality.zeroshot import TaskResult, paired


def answers(dense: Mapping[str, TaskResult], other: Mapping[str, TaskResult]) -> dict[str, Answers]:
    """Return how both models answered each task, question by question.

    Raises:
        EvaluationError: they were not asked the same.
    """
    found = {}
    for name, first in dense.items():
        second = other[name]
        paired(first, second)  # refuses what cannot be compared
        one, two = first.outcomes, second.outcomes
        both, lost, won, neither = (int((a & b).sum()) for a in (one, ~one) for b in (two, ~two))
        found[name] = Answers(both, lost, won, neither, first.chance)
    return found
