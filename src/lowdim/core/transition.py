"""Transitions: how a mask moves, in positions rather than in whole masks.

A mask is the ascending flat indices of its kept units: a transition costs what is kept, not what there could be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowdim.core.lazy import torch
from lowdim.core.topk import keep_top

if TYPE_CHECKING:
    from torch import Generator, Tensor

# Below this many positions a permutation of all that is free is quicker than drawing until enough are new.
_SMALL = 1 << 16


def draw(count: int, size: int, excluded: Tensor, generator: Generator) -> Tensor:
    """Draw positions uniformly, without replacement, from those that are not excluded.

    Args:
        count: positions to draw.
        size: positions are 0 to ``size`` - 1; memory is in proportion to ``count`` and ``excluded``, not to ``size``,
            unless a large part of all is taken.
        excluded: int64, ascending, positions that must not be drawn.
        generator: source of randomness, on the CPU.

    Returns:
        int64 [count], ascending.

    Raises:
        ValueError: fewer than ``count`` positions are free.

    Example:
        >>> import torch
        >>> draw(2, 4, torch.tensor([0, 2]), torch.Generator().manual_seed(0))
        tensor([1, 3])
    """
    taken = len(excluded)
    if not 0 <= count <= size - taken:
        raise ValueError(f"count must be between 0 and the free positions ({size - taken}); got {count}")
    if size <= _SMALL or 4 * (taken + count) > size:
        free = complement(excluded, size)
        return free[torch.randperm(len(free), generator=generator)[:count]].sort().values
    drawn = torch.empty(0, dtype=torch.int64)
    while len(drawn) < count:  # asking for what is still missing, never more, leaves every set equally likely
        fresh = torch.randint(size, (count - len(drawn),), generator=generator).unique()
        drawn = torch.cat([drawn, fresh[~member(fresh, excluded)]]).unique()
    return drawn


def member(positions: Tensor, ascending: Tensor) -> Tensor:
    """Tell which positions are among ``ascending``; bool, of the shape of ``positions``.

    Example:
        >>> import torch
        >>> member(torch.tensor([1, 2, 5]), torch.tensor([2, 5, 7]))
        tensor([False,  True,  True])
    """
    if not len(ascending):
        return torch.zeros(positions.shape, dtype=torch.bool, device=positions.device)
    at = torch.searchsorted(ascending, positions).clamp_(max=len(ascending) - 1)
    return ascending[at] == positions


def complement(positions: Tensor, size: int) -> Tensor:
    """Return the positions of 0 to ``size`` - 1 that are not given, ascending.

    Example:
        >>> import torch
        >>> complement(torch.tensor([1, 2]), 4)
        tensor([0, 3])
    """
    free = torch.ones(size, dtype=torch.bool, device=positions.device)
    free[positions] = False
    return free.nonzero().flatten()


def union(a: Tensor, b: Tensor) -> Tensor:
    """Merge positions, ascending, each once.

    Example:
        >>> import torch
        >>> union(torch.tensor([1, 4]), torch.tensor([0, 4]))
        tensor([0, 1, 4])
    """
    merged: Tensor = torch.cat([a, b]).unique()
    return merged


def drop_lowest(values: Tensor, count: int) -> Tensor:
    """Mark what stays when the ``count`` lowest values go; of equal values the last position goes first.

    Example:
        >>> import torch
        >>> drop_lowest(torch.tensor([0.9, 0.1, 0.5]), 1)
        tensor([ True, False,  True])
    """
    return keep_top(values, values.numel() - min(count, values.numel()))


def drop_by_sign(values: Tensor, fraction: float) -> Tensor:
    """Mark what stays when each sign loses the same share of its weights, those nearest to zero.

    floor(fraction * n_pos) positive and floor(fraction * n_neg) negative weights go: the rule of SET (arXiv
    1707.04780). Exact zeros count as positive.

    Example:
        >>> import torch
        >>> weights = torch.tensor([0.01, 0.02, 0.5, 0.9, -0.6, -0.7, -0.8, -0.9])
        >>> weights[~drop_by_sign(weights, 0.25)]
        tensor([ 0.0100, -0.6000])
    """
    keep = torch.ones(values.shape, dtype=torch.bool, device=values.device)
    for chosen in (values >= 0, values < 0):
        keep[chosen] = drop_lowest(values[chosen].abs(), whole(fraction * int(chosen.sum())))
    return keep


def whole(quota: float) -> int:
    """Round down to a whole number, forgiving the last bit of a product such as 0.3 * 10.

    Example:
        >>> whole(0.29 * 100), whole(2.9)
        (29, 2)
    """
    return int(quota + 1e-9)
