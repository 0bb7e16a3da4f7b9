"""The 16 or 8 whole numbers that stand for a matrix of 4-bit or 3-bit weights, chosen to lose the least."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowdim.core.lazy import torch

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

LARGEST = 127
ENTRIES = 16
_HALVES = 4 * LARGEST + 1
_ROWS = 512
_LOW = 0.05
_FLOOR = 0.02


class Moments:
    """Sums of weights, in units of their scales, over every half unit from -127 to 127.

    The bounds between the neighbourhoods of two whole numbers are whole or half, so that the loss of any choice of
    them follows exactly from these sums.
    """

    def __init__(self) -> None:
        import numpy as np

        self.sums = np.zeros((3, _HALVES + 1))

    def add(self, units: Tensor, roots: Tensor) -> None:
        """Add weights ``u``, whose squared rounding errors count ``root^2`` times."""
        import numpy as np

        u, weights = units.cpu().numpy(), np.square(roots.cpu().numpy(), dtype=np.float64)
        place = np.floor(u * 2).astype(np.int64) + 2 * LARGEST
        u = u.astype(np.float64)
        for i, term in enumerate((weights, weights * u, weights * u * u)):
            self.sums[i, 1:] += np.bincount(place, term, minlength=_HALVES)

    def best_levels(self, zero: bool, entries: int = ENTRIES) -> Tensor:
        """Return the whole numbers that lose least, int8 ascending; 0 is among them, or is not, as ``zero`` says.

        In one dimension the best choice follows from dynamic programming: no start, no iteration.

        Example:
            >>> import torch
            >>> sums = Moments()
            >>> sums.add(torch.tensor([-9.0, 3.0, 4.0, 100.0]), torch.ones(4))
            >>> {-9, 3, 4, 100} <= set(sums.best_levels(zero=False).tolist()), len(sums.best_levels(True, entries=8))
            (True, 8)
        """
        import numpy as np

        places = np.arange(-LARGEST, LARGEST + 1)
        places = places if zero else places[places != 0]
        before, between, after = self._losses(places, zero)
        best, came = before, []
        for _ in range(entries - 1):
            paths = best[:, None] + between
            came.append(paths.argmin(axis=0))
            best = paths[came[-1], np.arange(len(places))]
        chosen = [int((best + after).argmin())]
        for previous in reversed(came):
            chosen.append(int(previous[chosen[-1]]))
        return torch.from_numpy(places[chosen[::-1]].astype(np.int8))

    def _losses(self, places: np.ndarray[Any, Any], zero: bool) -> tuple[Any, Any, Any]:
        """Return the loss below the first level, between each level and the next, and above the last."""
        import numpy as np

        sums, origin = self.sums.cumsum(axis=1), 2 * LARGEST

        def lost(low: Any, high: Any, level: Any) -> Any:
            part = sums[:, high] - sums[:, low]
            return part[2] - 2 * level * part[1] + level * level * part[0]

        left, right = places[:, None], places[None, :]
        middle = left + right + origin
        between = lost(2 * left + origin, middle, left) + lost(middle, 2 * right + origin, right)
        between[left >= right] = np.inf
        before = lost(np.zeros_like(places), 2 * places + origin, places)
        after = lost(2 * places + origin, np.full_like(places, _HALVES), places)
        if zero:
            between[(left < 0) & (right > 0)] = np.inf
            before[places > 0] = np.inf
            after[places < 0] = np.inf
        return before, between, after


def column_importance(weight: Tensor, mask: Tensor) -> Tensor:
    """Estimate from kept weights alone how large the inputs of each column are, squared, up to a factor.

    Scores that look at inputs keep small weights only where inputs are large. So the small weights of a column tell:
    ``1 / q^2``, with ``q`` the 5% quantile of its kept magnitudes, each divided by its row's mean, and not below 0.02,
    since a column may also be small because it does nothing. At most 512 rows are looked at.

    Args:
        weight: floating point ``[rows, cols]``.
        mask: kept entries.

    Returns:
        fp32 ``[cols]``, at most 1; 0 for a column without a weight.

    Example:
        >>> import torch
        >>> weight = torch.tensor([[1.0, 2.0, 0.0], [-1.0, 2.0, 0.0]])
        >>> column_importance(weight, weight != 0)
        tensor([1.0000, 0.2500, 0.0000])
    """
    step = max(1, len(weight) // _ROWS)
    magnitude = weight[::step].float().abs() * mask[::step]
    if not len(magnitude):
        return torch.zeros(weight.shape[1], device=weight.device)
    held = magnitude > 0
    means = magnitude.sum(1, keepdim=True) / held.sum(1, keepdim=True).clamp_min(1)
    share = torch.where(held, magnitude / means, torch.inf).t().contiguous().sort(1).values
    count = held.sum(0)
    low = share.gather(1, (count * _LOW).long()[:, None])[:, 0].clamp_min(_FLOOR)
    return torch.where(count > 0, (low.min() / low).square(), 0.0)


def table_of(levels: Tensor, entries: int = ENTRIES, zero: bool = False) -> Tensor:
    """Return the levels that occur, int8 ``[entries]``, ascending; where fewer do, the smallest others join them.

    Args:
        levels: int8, any shape.
        entries: of the table.
        zero: whether 0 is a level like others; if not it is left out.

    Raises:
        ValueError: more than ``entries`` occur.

    Example:
        >>> import torch
        >>> table_of(torch.tensor([[0, 5, -3, 5, 100]], dtype=torch.int8)).tolist()
        [-8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 100]
        >>> table_of(torch.tensor([[5, -3, 5, 100]], dtype=torch.int8), 8, zero=True).tolist()
        [-3, -2, -1, 0, 1, 2, 5, 100]
    """
    found = [level for level in torch.unique(levels).tolist() if level or zero]
    if len(found) > entries:
        raise ValueError(f"levels must be at most {entries}{'' if zero else ' beside 0'}, got {len(found)}")
    unused = {*range(-entries, entries + 1)} - {*found} - (set() if zero else {0})
    others = sorted(unused, key=lambda level: (abs(level), level))
    return torch.tensor(sorted([*found, *others[: entries - len(found)]]), dtype=torch.int8)
