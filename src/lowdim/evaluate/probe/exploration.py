"""How much of a network random growth explores."""

from __future__ import annotations

from collections.abc import Iterable

from lowdim.evaluate.errors import EvaluationError


def expected_exploration(density: float, updates: Iterable[tuple[int, int]]) -> float:
    r"""Return the expected share of weights that were ever active, R_s, under random growth.

    .. math:: E[R_s] = 1 - (1 - d) \prod_t (1 - k_t / z_t)

    A weight that was never active stays so at an update that grows k of the z empty positions at random
    with probability 1 - k / z. Growth by gradient returns to the same positions and explores less; growth
    where nothing was active yet explores more.

    Args:
        density: share d of active weights at the start.
        updates: for each update, how many weights it grew and how many positions were empty then, those it
            had just dropped too.

    Raises:
        EvaluationError: a density outside [0, 1], or more grown than empty.

    Paper: "Do We Actually Need Dense Over-Parameterization? In-Time Over-Parameterization in Sparse
    Training", arXiv 2102.02887.

    Example:
        >>> expected_exploration(0.25, [(2, 12), (3, 12)])
        0.53125
    """
    if not 0.0 <= density <= 1.0:
        raise EvaluationError(f"density must lie in [0, 1]; got {density}")
    unseen = 1.0 - density
    for grown, empty in updates:
        if not 0 <= grown <= empty:
            raise EvaluationError(f"an update cannot grow {grown} of {empty} empty positions")
        if empty:
            unseen *= 1.0 - grown / empty
    return 1.0 - unseen
