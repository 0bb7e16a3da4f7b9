"""From shares to whole numbers of weights whose total is exact."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import TypeVar

from lowdim.core.budget import apportion
from lowdim.core.errors import RecipeError
from lowdim.core.settings import check_sparsity

Key = TypeVar("Key", bound=Hashable)


def whole_counts(
    sizes: Mapping[Key, int], densities: Mapping[Key, float], sparsity: float | None = None
) -> dict[Key, int]:
    """Turn densities into whole numbers of weights whose total is exact.

    The total is round((1 - ``sparsity``) * N); remainders go to the largest fractional parts, of equal ones to the
    first layer. A layer keeps at least one weight, unless its density is 0 or it has none, and never more than it has.

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
    wanted = sum(quotas.values()) if sparsity is None else (1.0 - check_sparsity(sparsity)) * sum(sizes.values())
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
