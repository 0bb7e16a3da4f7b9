"""Paired differences: two models on the same windows or questions, with a standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lowdim.core.lazy import torch
from lowdim.evaluate.errors import EvaluationError


@dataclass(frozen=True)
class Difference:
    """Mean of the paired differences, sparse minus dense, and its standard error (NaN for a single pair)."""

    mean: float
    stderr: float


def standard_error(values: torch.Tensor) -> float:
    """Return the standard error of a mean, sqrt(sum_i (x_i - mean(x))^2 / (n (n - 1))); NaN for a single value.

    Args:
        values: x, one-dimensional.

    Example:
        >>> import torch
        >>> standard_error(torch.tensor([1.0, 3.0]))
        1.0
    """
    count = len(values)
    return float(values.double().std()) / math.sqrt(count) if count > 1 else math.nan


def difference(dense: torch.Tensor, sparse: torch.Tensor) -> Difference:
    """Compare two sets of numbers that belong together pair by pair.

    Args:
        dense: one number per window or question, ``[n]``.
        sparse: the same of the other model, ``[n]``.

    Raises:
        EvaluationError: the numbers of pairs differ.

    Example:
        >>> import torch
        >>> difference(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 5.0]))
        Difference(mean=2.0, stderr=1.0)
    """
    if dense.shape != sparse.shape:
        raise EvaluationError(f"pairs needed: the dense model has {len(dense)} results, the sparse {len(sparse)}")
    delta = sparse.double() - dense.double()
    return Difference(float(delta.mean()), standard_error(delta))
