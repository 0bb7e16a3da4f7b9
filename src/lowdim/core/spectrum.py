"""The spectrum of a weight, and the power law of its tail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from lowdim.core.errors import NumericalError, suggest
from lowdim.core.lazy import torch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    Spectrum = NDArray[np.float64]

Estimator = Literal["xmin_peak", "xmin_mid", "none"]

_BINS = 100


def eigenvalues(weight: Tensor) -> Spectrum:
    """Return the squared singular values of a matrix, ascending, those that are zero to fp64 left out.

    They are the eigenvalues of the smaller of W W^T and W^T W in fp64, which is faster than an fp32 singular
    value decomposition and more exact. Zero means below max(rows, cols) * 2^-52 of the largest.

    Args:
        weight: [rows, cols], any float dtype.

    Raises:
        NumericalError: the weight holds NaN or Inf.

    Example:
        >>> import torch
        >>> eigenvalues(torch.tensor([[3.0, 0.0], [0.0, 0.0], [0.0, 2.0]])).tolist()
        [4.0, 9.0]
    """
    import numpy as np

    wide = weight.detach().double()
    if not bool(wide.isfinite().all()):
        raise NumericalError("a weight holds NaN or Inf: its spectrum is undefined")
    wide = wide if wide.shape[0] >= wide.shape[1] else wide.T
    if not wide.numel():
        return np.zeros(0)
    found: Spectrum
    if wide.device.type == "cpu":
        matrix = wide.numpy()
        found = np.linalg.eigvalsh(matrix.T @ matrix)
    else:
        found = torch.linalg.eigvalsh(wide.T @ wide).cpu().numpy()
    return found[found > max(weight.shape) * 2.0**-52 * max(float(found[-1]), 0.0)]


def tail_exponent(spectrum: Spectrum, estimator: Estimator = "xmin_peak") -> float:
    """Return the exponent alpha of the power law that the upper part of a spectrum follows.

    For a tail of n values from x_i upwards, alpha_i = 1 + n / sum_k ln(x_k / x_i) (Hill), and the distance to
    the fitted law is D_i = max_k |1 - (x_k / x_i)^(1 - alpha_i) - (k - i) / n|. The tail starts

    - "xmin_mid": at the middle, i = N // 2;
    - "xmin_peak": where D is least among the x_i in [log10(0.95 p), 1.5 p], p being the left edge of the
    fullest of
      100 bins of log10 x. The lower limit is in the wrong unit and rarely bites; published values depend on
      it. It alone makes this estimator depend on the scale of the weight;
    - "none": where D is least of all.

    The largest value never starts a tail.

    Args:
        spectrum: positive, ascending.
        estimator: where the tail starts.

    Returns:
        alpha above 1, or NaN if fewer than two values, or only equal ones, are left.

    Raises:
        ValueError: unknown estimator.

    Paper: "AlphaPruning", arXiv 2410.10912.

    Example:
        >>> import numpy as np
        >>> round(tail_exponent(np.array([1.0, 2.0, 4.0, 8.0]), "xmin_mid"), 4)
        3.8854
    """
    import numpy as np

    count = len(spectrum)
    if count < 2:
        return float("nan")
    logs = np.log(spectrum)
    tails = np.arange(count, 0, -1, dtype=np.float64)
    spread = np.cumsum(logs[::-1])[::-1] - tails * logs
    spread[spread <= 1e-12 * tails] = np.nan  # equal values, up to rounding
    alphas = 1.0 + tails / spread
    if estimator == "xmin_mid":
        return float(alphas[count // 2])
    if estimator == "xmin_peak":
        low, high = _around_the_peak(spectrum)
    elif estimator == "none":
        low, high = -np.inf, np.inf
    else:
        raise ValueError(f"unknown estimator {estimator!r}. {suggest(estimator, ['xmin_peak', 'xmin_mid', 'none'])}")
    starts = np.flatnonzero((spectrum >= low) & (spectrum <= high) & np.isfinite(alphas))
    starts = starts[starts < count - 1]
    if not len(starts):
        return float("nan")
    return float(alphas[min(starts, key=lambda i: _distance(logs[i:], float(alphas[i])))])


def _around_the_peak(spectrum: Spectrum) -> tuple[float, float]:
    import numpy as np

    counts, edges = np.histogram(np.log10(spectrum), bins=_BINS)
    peak = 10.0 ** float(edges[counts.argmax()])
    return float(np.log10(0.95 * peak)), 1.5 * peak


def _distance(logs: Spectrum, alpha: float) -> float:
    import numpy as np

    fitted = 1.0 - np.exp((1.0 - alpha) * (logs - logs[0]))
    return float(np.abs(fitted - np.arange(len(logs)) / len(logs)).max())


def hill_exponent(spectrum: Spectrum) -> float:
    """Return the Hill estimate of the tail exponent over the upper half, ``1 + k / sum_j ln(x_(N-j+1) / x_(N-k))``.

    The sum runs over j = 1 .. k with k = N // 2. `tail_exponent` with "xmin_mid" cuts one value higher and counts that
    value into the tail, so that the two differ in size, though little in order.

    Args:
        spectrum: positive, ascending.

    Returns:
        alpha above 1, or NaN if fewer than two values, or only equal ones, are left.

    Example:
        >>> import numpy as np
        >>> round(hill_exponent(np.array([1.0, 2.0, 4.0, 8.0])), 4)
        1.9618
    """
    import numpy as np

    k = len(spectrum) // 2
    if not k:
        return float("nan")
    logs = np.log(spectrum)
    spread = float(np.sum(logs[-k:] - logs[-k - 1]))
    return 1.0 + k / spread if spread > 1e-12 * k else float("nan")
