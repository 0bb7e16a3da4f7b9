"""From shares to whole numbers of weights whose total is exact."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import TypeVar

from lowdim.core.budget import apportion
from lowdim.core.errors import RecipeError

Key = TypeVar("Key", bound=Hashable)


def check_sparsity(sparsity: float) -> float:
    """Return a target share of zeros as a float.

    Raises:
        RecipeError: it is not a number, below 0, or not below 1.
    """
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)):
        raise RecipeError(f"sparsity must be a number such as 0.9 (the share of zeros); got {sparsity!r}")
    if not 0.0 <= sparsity < 1.0:
        hint = f"; did you mean {sparsity / 100:g}?" if 1.0 <= sparsity < 100.0 else ""
        raise RecipeError(
            f"sparsity must be at least 0 and below 1 (the share of zeros); got {sparsity}{hint}"
        )
    return float(sparsity)


def whole_counts(
    sizes: Mapping[Key, int], densities: Mapping[Key, float], sparsity: float | None = None
) -> dict[Key, int]:
    """Turn densities into whole numbers of weights whose total is exact.

    The total is round((1 - ``sparsity``) * N); remainders go to the largest fractional parts, of equal ones to
    the first layer. A layer keeps at least one weight, unless its density is 0 or it has none, and never more
    than it has.

    Args:
        sizes: weights per layer.
        densities: the share each of them keeps.
        sparsity: the target the densities were made for; None takes the densities' own total.

    Raises:
        RecipeError: the budget is smaller than the number of layers that must keep a weight, or larger than
            the layers of density above 0.

    Example:
        >>> whole_counts({"a": 40, "b": 200}, {"a": 0.34, "b": 0.15}, 0.818)
        {'a': 14, 'b': 30}
    """
    quotas = {name: densities[name] * n for name, n in sizes.items()}
    live = [name for name, quota in quotas.items() if quota > 0]
    wanted = (
        sum(quotas.values()) if sparsity is None else (1.0 - check_sparsity(sparsity)) * sum(sizes.values())
    )
    total, room = round(wanted), sum(sizes[name] for name in live)
    if not len(live) <= total <= room:
        raise RecipeError(
            f"the sparsity leaves {total} weights, but {len(live)} layers must keep between {len(live)} and "
            f"{room} in all, at least one each. Change the sparsity, or leave layers out"
        )
    made = dict.fromkeys(sizes, 0)
    while small := [name for name in live if quotas[name] < 1.0]:
        made |= dict.fromkeys(small, 1)
        total -= len(small)
        live = [name for name in live if name not in set(small)]
        scale = total / math.fsum(quotas[name] for name in live) if live else 0.0
        quotas |= {name: min(quotas[name] * scale, float(sizes[name])) for name in live}
    shares = apportion([quotas[name] for name in live], total, [sizes[name] for name in live])
    return made | dict(zip(live, shares, strict=True))
