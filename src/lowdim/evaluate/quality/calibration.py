"""How far a classifier's confidence is from its accuracy."""

from __future__ import annotations

from lowdim.core.lazy import torch


def calibration_error(confidences: torch.Tensor, hits: torch.Tensor, bins: int = 15) -> float:
    """Return the expected calibration error: the mean of |accuracy - confidence| over equal bins of confidence.

    ECE = sum_b n_b / n * |accuracy_b - confidence_b|, in bins (lower, upper]. Paper: "On Calibration of Modern Neural
    Networks", arXiv 1706.04599.

    Args:
        confidences: of the likeliest class, [examples].
        hits: whether that class was right, bool [examples].
        bins: of equal width.

    Example:
        >>> import torch
        >>> round(calibration_error(torch.tensor([0.9, 0.9, 0.6, 0.6]), torch.tensor([1, 1, 1, 0]).bool()), 3)
        0.1
    """
    sure = confidences.double()
    places = (sure * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, places, hits.double() - sure)
    return float(gaps.abs().sum() / len(hits))
