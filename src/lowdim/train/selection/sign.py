"""Is there a sign of a bias: are some samples misjudged more clearly than hard ones are?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from lowdim.core.random import derive_seed

TAIL, LEAST, PERMUTATIONS, LEVEL = 0.25, 20, 9_999, 0.01


@dataclass(frozen=True)
class Sign:
    """What the test found.

    Attributes:
        p: chance of such a tail, or a heavier one, where there is no bias; None where too few samples could be judged.
        trend: rank correlation of place and spacing in the tail, which a bias makes positive.
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
    cue misleads are a population of their own, far out, and the fall slows down before it. With z_1 < ... < z_k the
    distances of the lowest quarter of the margins from its upper end, the normalised spacings

        D_i = (k - i + 1) (z_i - z_{i-1})

    are exchangeable where the tail falls off exponentially, shrink with i where it does so faster, and grow where
    slower. The p-value is the share of permutations of D whose rank correlation with i is at least as high.

    Source: Proschan and Pyke, "Tests for monotone failure rate", 1967, for the spacings; their use here is lowdim's own.

    Args:
        margin: fp32 [samples].
        seed: of the permutations.

    Example:
        >>> gauss = torch.distributions.Normal(4.0, 2.0).icdf(torch.linspace(0.001, 0.999, 999))
        >>> sign_of_bias(gauss).found
        False
        >>> sign_of_bias(torch.cat([gauss, torch.linspace(-12.0, -6.0, 30)])).found
        True
    """
    count = round(TAIL * len(margin))
    misjudged = int((margin < 0).sum())
    if count < LEAST:
        return Sign(None, 0.0, count, misjudged)
    distance = -margin.double().sort().values[: count + 1].flip(0).numpy()
    spacings = np.diff(distance) * np.arange(count, 0, -1)
    place, order = _standard(np.arange(count)), _standard(rankdata(spacings))
    trend = float(place @ order)
    source = np.random.default_rng(derive_seed(seed, "selection", "sign"))
    drawn = np.array([source.permutation(order) @ place for _ in range(PERMUTATIONS)])
    return Sign((1 + int((drawn >= trend).sum())) / (1 + PERMUTATIONS), trend, count, misjudged)


def _standard(values: Any) -> Any:
    centred = values - values.mean()
    return centred / max(float(np.linalg.norm(centred)), 1e-12)
