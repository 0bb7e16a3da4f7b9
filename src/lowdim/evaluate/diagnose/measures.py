"""What is measured of one block, as functions of tensors: distances, a variance, a Jacobian, a spectrum."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lowdim.core.spectrum import eigenvalues, hill_exponent, tail_exponent


def _apart(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lengths of difference and sum of directions, fp64 ``[...]``; a zero vector has no direction."""
    a, b = (
        torch.nn.functional.normalize(x.double(), dim=-1, eps=torch.finfo(torch.float64).tiny) for x in (one, other)
    )
    return (a - b).norm(dim=-1), (a + b).norm(dim=-1)


def angles(one: Tensor, other: Tensor) -> Tensor:
    r"""Return the angular distances of vectors, in units of pi.

    .. math:: d(a, b) = \arccos(\cos(a, b)) / \pi = 2 \operatorname{atan2}(|\hat a - \hat b|, |\hat a + \hat b|) / \pi

    The second form is exact where the first loses half of its digits, at angles near 0; equal vectors are exactly 0
    apart. A zero vector is 0.5 from any other and 0 from itself.

    Args:
        one: ``[..., width]``.
        other: of the same shape.

    Returns:
        fp64 ``[...]`` in [0, 1].

    Paper: "The Unreasonable Ineffectiveness of the Deeper Layers", arXiv 2403.17887.

    Example:
        >>> angles(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 2.0], [3.0, 0.0]])).tolist()
        [0.5, 0.0]
    """
    return 2 * torch.atan2(*_apart(one, other)) / math.pi


def influences(one: Tensor, other: Tensor) -> Tensor:
    r"""Return 1 - cos of vectors, computed as :math:`|\hat a - \hat b|^2 / 2`, which is exactly 0 for equal ones.

    Args:
        one: ``[..., width]``.
        other: of the same shape.

    Returns:
        fp64 ``[...]`` in [0, 2].

    Paper: "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect", arXiv 2403.03853, whose
    block influence is the mean over all tokens.

    Example:
        >>> influences(torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[4.0, 3.0], [-2.0, 0.0]])).tolist()
        [0.04..., 2.0]
    """
    return _apart(one, other)[0].square() / 2


@dataclass
class Moments:
    """Mean and variance over all entries of many tensors, merged tensor by tensor in fp64.

    Example:
        >>> seen = Moments()
        >>> seen.add(torch.tensor([1.0, 3.0]))
        >>> seen.add(torch.tensor([5.0]))
        >>> seen.mean, round(seen.variance, 4)
        (3.0, 2.6667)
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, values: Tensor) -> None:
        """Take in a tensor."""
        wide = values.double()
        mean, new = float(wide.mean()), wide.numel()
        apart, total = mean - self.mean, self.count + new
        self.squares += float((wide - mean).square().sum()) + apart**2 * self.count * new / total
        self.mean += apart * new / total
        self.count = total

    @property
    def variance(self) -> float:
        """The variance, divided by the number of entries; 0 before the first."""
        return self.squares / max(1, self.count)


@dataclass
class Jacobian:
    r"""Sizes of a block's Jacobian J = d out / d in, an [n, n] matrix that is never formed, from random probes.

    For entries of v that are +1 or -1 and independent, :math:`E |J^T v|^2 = |J|_F^2`, :math:`E v^T J v = tr J` and
    :math:`E |J^T v - v|^2 = |J - I|_F^2`. Each probe costs one backward pass through the block.

    Example:
        >>> seen = Jacobian()
        >>> v = torch.tensor([1.0, -1.0, 1.0])
        >>> seen.add(v, 3 * v)
        >>> seen.distance, seen.gain, seen.trace
        (2.0, 3.0, 3.0)
    """

    count: int = 0
    apart: float = 0.0
    squares: float = 0.0
    along: float = 0.0

    def add(self, probe: Tensor, pulled: Tensor) -> None:
        """Take in a probe v and J^T v."""
        v, u = probe.double(), pulled.double()
        self.count += v.numel()
        self.apart += float((u - v).square().sum())
        self.squares += float(u.square().sum())
        self.along += float((u * v).sum())

    @property
    def distance(self) -> float:
        """|J - I|_F / sqrt(n): 0 for a block that passes on what it is given."""
        return math.sqrt(self.apart / max(1, self.count))

    @property
    def gain(self) -> float:
        """|J|_F / sqrt(n): 1 for the identity."""
        return math.sqrt(self.squares / max(1, self.count))

    @property
    def trace(self) -> float:
        """tr(J) / n: 1 for the identity."""
        return self.along / max(1, self.count)


@dataclass(frozen=True)
class Spectrum:
    """Shape of a weight's spectrum, of the eigenvalues x of W W^T; NaN where there are too few.

    Attributes:
        alpha: Hill exponent of the tail from the median upwards, that value counted in: the form of AlphaDecay's code,
            its ``estimator="median"``.
        hill: Hill exponent of the upper half over the value below it: the form of AlphaDecay's paper, and its default.
        alpha_hat: alpha log10(max x), the size of the weight taken in.
        stable_rank: sum x / max x.
        entropy: of x / sum x, over the logarithm of the smaller side: 1 where all directions weigh the same.

    Example:
        >>> found = Spectrum.of(torch.diag(torch.tensor([1.0, 2.0, 4.0, 8.0]).sqrt()))
        >>> [round(value, 4) for value in (found.alpha, found.hill)]
        [3.8854, 1.9618]
        >>> [round(value, 4) for value in (found.alpha_hat, found.stable_rank, found.entropy)]
        [3.5089, 1.875, 0.8201]
    """

    alpha: float
    hill: float
    alpha_hat: float
    stable_rank: float
    entropy: float

    @classmethod
    def of(cls, weight: Tensor) -> Spectrum:
        """Return that of a matrix.

        Args:
            weight: ``[out, in]``.

        Raises:
            NumericalError: the weight holds NaN or Inf.

        Paper: "AlphaDecay", arXiv 2506.14562.
        """
        import numpy as np

        found, side = eigenvalues(weight), min(weight.shape)
        if not len(found):
            return cls(*[math.nan] * 5)
        alpha, shares = tail_exponent(found, "xmin_mid"), found / found.sum()
        entropy = -float((shares * np.log(shares)).sum()) / math.log(side) if side > 1 else math.nan
        hill = hill_exponent(found) if len(found) > 1 else math.nan
        return cls(alpha, hill, alpha * math.log10(found[-1]), float(found.sum() / found[-1]), entropy)
