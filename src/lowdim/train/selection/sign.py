"""Is there a sign of a bias: are some samples misjudged more clearly than hard ones are?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata
from torch import Tensor

from lowdim.core.random import derive_seed

Floats = npt.NDArray[np.float64]
TAIL, LEAST, WINDOW, PERMUTATIONS, LEVEL = 0.25, 20, 8, 1_999, 0.01
_AT_ONCE = 1 << 20  # numbers that are permuted at once


@dataclass(frozen=True)
class Sign:
    """What the test found.

    Attributes:
        p: chance of such a tail, or a heavier one, where there is no bias; None where too few samples could be judged.
        trend: rank correlation of place and spacing in the tail.
        tail: samples in the tail.
        misjudged: samples that the network gives to another class.
    """

    p: float | None
    trend: float
    tail: int
    misjudged: int

    @property
    def found(self) -> bool:
        """Whether there is a sign, at the level of 1%."""
        return self.p is not None and self.p < LEVEL

    def sentence(self) -> str:
        """Return what was found in words."""
        if not self.tail:
            return (
                "No test for a bias: fewer than half of the samples have a margin. Ranks by difficulty have none; "
                "sebra needs more epochs, or a higher lr."
            )
        if self.p is None:
            return f"No test for a bias: its tail would hold {self.tail} samples, and needs {LEAST}."
        chance = f"p = {self.p:.4f} of a permutation test"
        if not self.found:
            return f"No sign of a bias ({chance}): what is learnt last looks hard, not misled."
        return (
            f"A sign of a bias ({chance}): some samples are misjudged more clearly than hard samples are, as those are "
            "which lack a cue that the rest of their class has, or have that of another class, or a wrong label."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the findings as JSON can hold them."""
        return asdict(self) | {"found": self.found, "sentence": self.sentence()}


def sign_of_bias(margin: Tensor, seed: int = 0) -> Sign:
    """Test whether the samples that a network misjudges are more than the hard end of one population.

    The margin of a sample is log p of its class less log p of the likeliest other. Without a bias, margins have one
    mode, and to its left the fewer samples are left, the faster they end: the density is log-concave. Samples that a
    cue misleads are a population of their own, far out, and the fall slows down before it. With z_0 < ... < z_k the
    distances of the lowest quarter of the margins from its upper end, the normalised spacings

        D_i = (k - i + 1) (z_i - z_{i-1})

    are exchangeable where the tail falls off exponentially, shrink with i where it does so faster, and grow where
    slower. Two statistics of the ranks of D look for growth: their correlation with i, and the largest difference of
    the means of two windows side by side, of 8, 16, 32, ... spacings each. The p-value is the share of permutations of
    D in which the larger of the two, each in its deviations, is at least as large.

    Source: Proschan and Pyke, "Tests for monotone failure rate", 1967, for the spacings; the windows, and their use for
    margins, are lowdim's own.

    Args:
        margin: fp32 [samples].
        seed: of the permutations.

    Example:
        >>> import torch
        >>> even = torch.linspace(0.001, 0.999, 999)
        >>> sign_of_bias(torch.distributions.Normal(4.0, 2.0).icdf(even)).found
        False
        >>> misled = torch.linspace(-12.0, -6.0, 50)
        >>> sign_of_bias(torch.cat([4 + even.log(), misled])).found
        True
    """
    count = round(TAIL * len(margin))
    misjudged = int((margin < 0).sum())
    if count < LEAST:
        return Sign(None, 0.0, count, misjudged)
    distance = -margin.double().sort().values[: count + 1].flip(0).numpy()
    ranks = rankdata(np.diff(distance) * np.arange(count, 0, -1))
    ranks = (ranks - ranks.mean()) / max(float(ranks.std()), 1e-12)
    source = np.random.default_rng(derive_seed(seed, "selection", "sign"))
    found = [_growth(ranks[None])]
    rows = max(1, _AT_ONCE // count)
    for begun in range(0, PERMUTATIONS, rows):
        some = np.tile(ranks, (min(rows, PERMUTATIONS - begun), 1))
        found.append(_growth(source.permuted(some, axis=1)))
    growths = np.concatenate(found)
    deviations = (growths - growths.mean(0)) / np.maximum(growths.std(0), 1e-12)
    largest = deviations.max(1)
    return Sign(float((largest >= largest[0]).mean()), float(growths[0, 0]), count, misjudged)


def _growth(ranks: Floats) -> Floats:
    """Return what grows in rows of standardised ranks: the correlation with their place, then a scan by each width.

    Args:
        ranks: [rows, k].
    """
    count = ranks.shape[1]
    place = np.arange(count) - (count - 1) / 2
    place /= np.linalg.norm(place) * np.sqrt(count)
    sums = np.pad(ranks.cumsum(1), ((0, 0), (1, 0)))
    found, width = [ranks @ place], WINDOW
    while 2 * width <= count:
        middle = sums[:, width : count - width + 1]
        steps = sums[:, 2 * width :] - 2 * middle + sums[:, : count - 2 * width + 1]
        found.append(steps.max(1) / np.sqrt(2 * width))
        width *= 2
    return np.stack(found, 1)
