"""AlphaDecay: weight decay per matrix, from the tail of its spectrum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lowdim.core.lazy import torch
from lowdim.core.settings import Settings, count, within
from lowdim.core.spectrum import eigenvalues, hill_exponent, tail_exponent


@dataclass(frozen=True)
class AlphaDecay(Settings):
    """Decays each matrix by ``eta (low + (high - low) (alpha - min) / (max - min))``, alpha being its tail exponent.

    eta is the weight decay of the matrix's group in the optimizer; min and max are over all matrices that take part. A
    heavier tail (smaller alpha) shows stronger feature learning and is decayed less. The exponents are measured again
    every so many steps, from the small Gram matrix of each weight in fp64. `lowdim.train.riders.spectral.SpectralDecay`
    is the rider that does so in any loop.

    Paper: "AlphaDecay: Module-wise Weight Decay for Heavy-Tailed Balancing in LLMs", NeurIPS 2025, arXiv 2506.14562.

    Args:
        every: optimizer steps between two measurements; the first is before the first step.
        low: factor of the heaviest tail.
        high: factor of the lightest; None for the paper's: 5 where decay is decoupled (AdamW), 3 where it is a part of
            the gradient (Adam).
        estimator: "hill", the paper's, over the upper half of the spectrum; "median" as in its code, which cuts one
            value higher.
        least: eigenvalues below which a matrix keeps eta.
        skip_first: whether the first linear layer keeps eta, as in the code of the paper: the queries of block 1.

    Example:
        >>> AlphaDecay(high=3.0).ratios({"a": 2.0, "b": 3.0, "c": 4.0}, 3.0)
        {'a': 0.666..., 'b': 1.833..., 'c': 3.0}
    """

    every: int = count(500, why="optimizer steps between two measurements")
    low: float = within(2 / 3, least=0)
    high: float | None = within(None, least=0)
    estimator: Literal["hill", "median"] = "hill"
    least: int = count(50, least=2, why="eigenvalues below which a matrix keeps its decay")
    skip_first: bool = False

    def exponent(self, weight: torch.Tensor) -> float:
        """Return the tail exponent of a matrix, or of the kernels of a convolution; NaN where it has none.

        Zero singular values, as masks and low rank leave them, take no part.
        """
        import numpy as np

        parts = weight.flatten(2).permute(2, 0, 1) if weight.dim() > 2 else weight[None]
        spectrum = np.sort(np.concatenate([eigenvalues(part) for part in parts]))
        if len(spectrum) < 2:
            return math.nan
        return hill_exponent(spectrum) if self.estimator == "hill" else tail_exponent(spectrum, "xmin_mid")

    def ratios(self, alphas: Mapping[str, float], high: float) -> dict[str, float]:
        """Return the factors of eta, by name; 1 where all exponents are equal, or a matrix has none."""
        known = [alpha for alpha in alphas.values() if math.isfinite(alpha)]
        least, most = (min(known), max(known)) if known else (0.0, 0.0)
        if least == most:
            return dict.fromkeys(alphas, 1.0)
        slope = (high - self.low) / (most - least)
        return {n: self.low + slope * (a - least) if math.isfinite(a) else 1.0 for n, a in alphas.items()}
