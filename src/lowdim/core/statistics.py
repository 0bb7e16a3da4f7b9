"""Running sums over the calibration tokens that reach one layer."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from lowdim.core.errors import NumericalError
from lowdim.core.lazy import torch

if TYPE_CHECKING:
    import torch
    from torch import Tensor

KINDS = frozenset({"square", "gram", "moments"})

# Elements converted to fp32 at a time: 4 MB stays in the last-level cache, where squaring and summing run
# four times faster than over the whole batch.
_CHUNK = 1 << 20

# Panels of a Gram matrix: 4 leave 10 of 16 products to do.
_PANELS = 4


class InputStatistics:
    """Raw sums over the inputs x of one layer, from which scores and repairs are computed.

    With X [tokens, in]: square_j = sum_t X_tj^2, gram = X^T X, total_j = sum_t X_tj. They are sums, not
    means, so ranks and batches add up; padding must be removed before. Sums of a chunk are taken in fp32 and
    added up in fp64 (square, total) or fp32 (gram).

    Args:
        in_features: width of the layer's input.
        needs: which sums to keep: "square", "gram" (which holds "square" in its diagonal), "moments" (sum of
            x, and square).
        device: where the sums live.

    Example:
        >>> import torch
        >>> s = InputStatistics(2, frozenset({"square"}))
        >>> s.add(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
        >>> s.tokens, s.square, s.mean_square()
        (2, tensor([10.,  4.]), tensor([5., 2.]))
    """

    def __init__(self, in_features: int, needs: Iterable[str], device: str | torch.device = "cpu") -> None:
        self.in_features = in_features
        self.needs = frozenset(needs)
        if unknown := self.needs - KINDS:
            raise ValueError(f"needs must be among {sorted(KINDS)}; got {sorted(unknown)}")
        where = torch.device(device)
        wide = torch.float32 if where.type == "mps" else torch.float64
        self._tokens = torch.zeros(1, dtype=torch.int64, device=where)
        self._gram = torch.zeros(in_features, in_features, device=where) if "gram" in self.needs else None
        own_square = self._gram is None and self.needs
        self._square = torch.zeros(in_features, dtype=wide, device=where) if own_square else None
        self._total = torch.zeros(in_features, dtype=wide, device=where) if "moments" in self.needs else None

    @property
    def tokens(self) -> int:
        """Tokens seen."""
        return int(self._tokens)

    @property
    def square(self) -> Tensor:
        """Sum of x^2 per input, fp32 [in]."""
        if self._gram is not None:
            return self._gram.diagonal().clone()
        return self._kept(self._square, "square").float()

    @property
    def gram(self) -> Tensor:
        """Sum of x x^T, fp32 [in, in]; the accumulator itself, not a copy."""
        return self._kept(self._gram, "gram")

    @property
    def total(self) -> Tensor:
        """Sum of x per input, fp32 [in]."""
        return self._kept(self._total, "moments").float()

    def _kept(self, tensor: Tensor | None, name: str) -> Tensor:
        if tensor is None:
            raise ValueError(f"these statistics were collected for {sorted(self.needs)}, not for {name!r}")
        return tensor

    def add(self, x: Tensor) -> None:
        """Add the inputs [tokens, in] of one batch, any float dtype, padding already removed.

        Raises:
            ValueError: the width is not ``in_features``.
        """
        if x.ndim != 2 or x.shape[1] != self.in_features:
            raise ValueError(f"x must be [tokens, {self.in_features}]; got shape {tuple(x.shape)}")
        with torch.no_grad():
            self._tokens += len(x)
            if self._gram is not None:
                _add_gram(self._gram, x.detach())
            if self._square is not None or self._total is not None:
                self._add_sums(x.detach())

    def _add_sums(self, x: Tensor) -> None:
        size = max(64, _CHUNK // max(1, self.in_features)) if x.device.type == "cpu" else max(1, len(x))
        for chunk in x.split(size):
            # a copy even of fp32, for it is squared in place
            values = chunk.to(torch.float32, copy=True)
            if self._total is not None:
                self._total += values.sum(0)
            if self._square is not None:
                self._square += values.square_().sum(0)

    def merge(self, other: InputStatistics) -> None:
        """Add the sums of another accumulator, as if its tokens had been seen here.

        Raises:
            ValueError: the other one is of another width or kept other sums.
        """
        if (other.in_features, other.needs) != (self.in_features, self.needs):
            raise ValueError(
                f"cannot merge statistics of width {other.in_features} for {sorted(other.needs)} into width "
                f"{self.in_features} for {sorted(self.needs)}"
            )
        for mine, theirs in zip(self.tensors(), other.tensors(), strict=True):
            mine += theirs.to(mine.device)

    def tensors(self) -> list[Tensor]:
        """Return the accumulators themselves; summing each over ranks in place merges the ranks."""
        return [t for t in (self._tokens, self._square, self._gram, self._total) if t is not None]

    def mean_square(self) -> Tensor:
        """Return the mean of x^2 per input, fp32 [in]; zeros if no token was seen."""
        wide = self._gram.diagonal().double() if self._gram is not None else self._kept(self._square, "square")
        return (wide / max(1, self.tokens)).float()

    def variance(self) -> Tensor:
        """Return the population variance of x per input, fp32 [in]; zeros if no token was seen."""
        n = max(1, self.tokens)
        mean = self._kept(self._total, "moments") / n
        square = self._gram.diagonal().double() if self._gram is not None else self._kept(self._square, "square")
        return (square / n - mean.square()).clamp_min(0).float()

    def check(self, name: str) -> None:
        """Refuse sums that overflowed.

        Raises:
            NumericalError: a sum is NaN or Inf; names the layer.
        """
        if not all(bool(t.isfinite().all()) for t in self.tensors()):
            raise NumericalError(
                f"the inputs of {name} hold NaN or Inf, or their squares overflow fp32. Load the model in "
                "bfloat16 or float32 and check the calibration text."
            )


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _add_gram(gram: Tensor, x: Tensor) -> None:
    """Add x^T x to ``gram`` in fp32."""
    import numpy as np

    if x.dtype == torch.bfloat16 and x.device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        with _bf16_products():
            _add_triangle(gram, x.float())
    elif x.device.type == "cpu":
        # numpy sees that both factors are one array and calls BLAS syrk: half the work of torch.mm
        size = max(4096, 4 * _CHUNK // max(1, x.shape[1]))
        for chunk in x.split(size):
            values = chunk.float().contiguous().numpy()
            with np.errstate(over="ignore", invalid="ignore"):  # `check` reports it with the layer's name
                gram += torch.from_numpy(values.T @ values)
    else:
        with _without_tf32():
            values = x.float()
            gram.addmm_(values.T, values)


def _add_triangle(gram: Tensor, values: Tensor) -> None:
    """Add X^T X by column panels, each against itself and what lies right of it, and mirror the rest."""
    columns = len(gram)
    edges = [columns * i // _PANELS for i in range(_PANELS + 1)]
    for start, end in itertools.pairwise(edges):
        gram[start:end, start:].addmm_(values[:, start:end].T, values[:, start:])
        gram[end:, start:end] = gram[start:end, end:].T


@contextlib.contextmanager
def _bf16_products() -> Iterator[None]:
    """Let the CPU multiply fp32 matrices as bf16 with fp32 sums: exact for values that came as bf16, and fast."""
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before
