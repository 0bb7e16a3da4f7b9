"""Exact top-k: which entries stay, with ties broken by position, without a sort."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, TypeVar

from lowdim.core.errors import NumericalError
from lowdim.core.lazy import torch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    Array = NDArray[np.floating]

Key = TypeVar("Key", bound=Hashable)

# Up to this width, counting pairs beats a selection per row: 30 times faster at 2:4 on a 4096 x 4096 weight.
_NARROW = 16
_CHUNK = 1 << 15
# From this width on a threshold estimated from a sample saves most of the selection: 2 to 8 times faster at 25 million.
_LONG = 1 << 18


def _ready(scores: Tensor) -> Tensor:
    """Return the scores in a dtype both numpy and torch can select in; refuse NaN."""
    scores = scores.detach()
    if scores.dtype in (torch.bfloat16, torch.float16):
        scores = scores.float()
    if scores.numel() and scores.is_floating_point() and bool(scores.max().isnan()):
        raise NumericalError("scores hold NaN: which entries are largest is undefined. Check the statistics.")
    return scores


def _rows_numpy(x: Array, keep: int) -> NDArray[np.bool_]:
    # numpy's vectorised quickselect is ten times faster on CPU than torch.kthvalue and torch.topk
    import numpy as np

    drop = x.shape[1] - keep
    part = np.partition(x, drop, axis=1)
    threshold = part[:, drop : drop + 1]
    mask: NDArray[np.bool_] = x >= threshold
    if drop:
        tied = np.flatnonzero(part[:, :drop].max(axis=1) == threshold[:, 0])
        if len(tied):
            mask[tied] &= ~_late_ties(x[tied] == threshold[tied], (part[tied, :drop] == threshold[tied]).sum(axis=1))
    return mask


def _late_ties(ties: NDArray[np.bool_], surplus: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Of each row's ties, mark the last ``surplus``."""
    import numpy as np

    if len(ties) == 1:  # a whole matrix taken as one row: positions are cheaper than a running count
        late = np.zeros_like(ties)
        late[0, np.flatnonzero(ties[0])[-int(surplus[0]) :]] = True
        return late
    room = ties.sum(axis=1) - surplus
    ties &= ties.cumsum(axis=1, dtype=np.int32) > room[:, None]
    return ties


def _narrow_rows_numpy(x: Array, keep: int) -> NDArray[np.bool_]:
    """Select in rows of a few entries by counting, for each, those that rank above it: N:M groups."""
    import numpy as np

    mask = np.empty(x.shape, dtype=np.bool_)
    for start in range(0, len(x), _CHUNK):
        columns = np.ascontiguousarray(x[start : start + _CHUNK].T)
        above = np.zeros(columns.shape, dtype=np.uint8)
        for j, k in itertools.combinations(range(len(columns)), 2):
            later = columns[k] > columns[j]
            above[j] += later
            above[k] += ~later
        mask[start : start + _CHUNK] = (above < keep).T
    return mask


def _long_row_numpy(x: Array, keep: int) -> NDArray[np.bool_]:
    """Select a small part of one long row among the few that a sample says may be in it."""
    import numpy as np

    sample = x[0, :: x.shape[1] >> 16]
    rank = keep * len(sample) / x.shape[1]
    rank += 5 * rank**0.5 + 10  # so that the threshold is almost never too high, in which case all is looked at
    if rank >= len(sample):
        return _rows_numpy(x, keep)
    floor = np.partition(sample, len(sample) - int(rank) - 1)[len(sample) - int(rank) - 1]
    near = np.flatnonzero(x[0] >= floor)
    if len(near) < keep:
        return _rows_numpy(x, keep)
    mask = np.zeros(x.shape, dtype=np.bool_)
    mask[0, near[_rows_numpy(x[:, near], keep)[0]]] = True
    return mask


def _rows_torch(x: Tensor, keep: int) -> Tensor:
    threshold = x.sort(dim=1).values[:, x.shape[1] - keep].unsqueeze(1)
    above, ties = x > threshold, x == threshold
    room = keep - above.sum(dim=1, keepdim=True)
    return above | (ties & (ties.cumsum(dim=1, dtype=torch.int64) <= room))


def _rows(x: Tensor, keep: int) -> Tensor:
    if keep == 0 or x.numel() == 0:
        return torch.zeros(x.shape, dtype=torch.bool, device=x.device)
    if keep == x.shape[1]:
        return torch.ones(x.shape, dtype=torch.bool, device=x.device)
    if x.device.type != "cpu":
        return _rows_torch(x, keep)
    if len(x) == 1 and x.shape[1] >= _LONG and 4 * keep < x.shape[1]:
        return torch.from_numpy(_long_row_numpy(x.numpy(), keep))
    select = _narrow_rows_numpy if x.shape[1] <= _NARROW else _rows_numpy
    return torch.from_numpy(select(x.numpy(), keep))


def keep_top(scores: Tensor, keep: int) -> Tensor:
    """Mark the ``keep`` largest entries of a tensor, the whole of it being one group.

    Exactly ``keep`` entries are True; of equal scores the lowest flat index is kept first.

    Args:
        scores: any shape and dtype; half precision is compared in fp32, which is exact.
        keep: number of entries to keep, 0 to ``scores.numel()``.

    Returns:
        A bool tensor of the shape and device of ``scores``, True where kept.

    Raises:
        NumericalError: a score is NaN.
        ValueError: ``keep`` is out of range.

    Example:
        >>> import torch
        >>> keep_top(torch.tensor([[1.0, 3.0], [3.0, 3.0]]), 2)
        tensor([[False,  True],
                [ True, False]])
    """
    if not 0 <= keep <= scores.numel():
        raise ValueError(f"keep must be between 0 and the number of scores ({scores.numel()}); got {keep}")
    return _rows(_ready(scores).reshape(1, -1), keep).reshape(scores.shape)


def keep_top_rows(scores: Tensor, keep: Tensor | int) -> Tensor:
    """Mark the largest entries of each row, each row being a group of its own.

    Row i has exactly ``keep[i]`` True entries; of equal scores the leftmost is kept first.

    Args:
        scores: [rows, cols].
        keep: entries to keep per row, one number for all rows or an integer tensor [rows].

    Returns:
        A bool tensor [rows, cols], True where kept.

    Raises:
        NumericalError: a score is NaN.
        ValueError: ``keep`` is out of range or has the wrong length.

    Example:
        >>> import torch
        >>> keep_top_rows(torch.tensor([[4.0, 2.0, 1.0], [5.0, 5.0, 5.0]]), torch.tensor([1, 2]))
        tensor([[ True, False, False],
                [ True,  True, False]])
    """
    if scores.ndim != 2:
        raise ValueError(f"scores must be a matrix [rows, cols]; got shape {tuple(scores.shape)}")
    rows, cols = scores.shape
    counts = keep if isinstance(keep, int) else keep.to(scores.device)
    if not isinstance(counts, int) and counts.shape != (rows,):
        raise ValueError(f"keep must be one number or one per row ({rows}); got shape {tuple(counts.shape)}")
    values: list[int] = [counts] * min(1, rows) if isinstance(counts, int) else counts.unique().tolist()
    if values and not 0 <= values[0] <= values[-1] <= cols:
        raise ValueError(f"keep must be between 0 and the row width ({cols}); got {values[0]} to {values[-1]}")
    scores = _ready(scores)
    if len(values) == 1:
        return _rows(scores, values[0])
    mask = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    for value in values:
        chosen = counts == value
        mask[chosen] = _rows(scores[chosen], value)
    return mask


def keep_top_across(scores: Mapping[Key, Tensor], keep: int) -> dict[Key, Tensor]:
    """Mark the ``keep`` largest entries of several tensors together, all of them being one group.

    Exactly ``keep`` entries are True; of equal scores the earliest tensor and the lowest flat index is kept first.

    Args:
        scores: by name, any shapes and devices; compared on the device of the first.
        keep: number of entries to keep, 0 to all.

    Returns:
        A bool tensor per name, of the shape and device of its scores, True where kept.

    Raises:
        NumericalError: a score is NaN; its tensor is named.
        ValueError: ``keep`` is out of range.

    Example:
        >>> import torch
        >>> found = keep_top_across({"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([[3.0], [2.0]])}, 2)
        >>> found["a"].tolist(), found["b"].tolist()
        ([False, True], [[True], [False]])
    """
    for name, score in scores.items():
        if bool(score.isnan().any()):
            raise NumericalError(f"the scores of {name} hold NaN. Check the data and the loss")
    home = next(iter(scores.values())).device
    kept = keep_top(torch.cat([score.reshape(-1).to(home) for score in scores.values()]), keep)
    parts = kept.split([score.numel() for score in scores.values()])
    return {
        name: part.reshape(score.shape).to(score.device)
        for (name, score), part in zip(scores.items(), parts, strict=True)
    }
