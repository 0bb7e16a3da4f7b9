"""Products of one token with one layer: torch, our dense kernels, our sparse kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lowdim.core.random import generator
from lowdim.infer.bench.result import Contestant, LayerTime, baseline
from lowdim.infer.bench.timing import ROUNDS, copies, interleaved
from lowdim.infer.sparse.choose import settle
from lowdim.infer.sparse.matrix import Matrix
from lowdim.infer.sparse.storage import PACKABLE

CURVE = (0.3, 0.5, 0.7, 0.9)
"""Sparsities at which one layer of every model is measured, with zeros drawn at random."""
CURVE_WEIGHTS = 2**24
GROUP = 64
TORCH = {"fp32": torch.float32, "bf16": torch.bfloat16}
BASELINE = baseline("bf16")


@dataclass(frozen=True)
class Product:
    """The layers of a model that have one shape.

    Attributes:
        names: their kinds.
        count: how many there are.
        weight: one of them, ``[rows, cols]``, fp32 or bf16.
        prunable: whether sparsity is meant for it: not for the head.
    """

    names: tuple[str, ...]
    count: int
    weight: Tensor
    prunable: bool = True

    @property
    def zeros(self) -> float:
        """Share of the weights that are zero."""
        return 1 - int(torch.count_nonzero(self.weight)) / self.weight.numel()


def curve_of(products: Sequence[Product]) -> Product | None:
    """Return the layer to draw the curve of: the largest of moderate size, else the smallest."""
    blocks = sorted((p for p in products if p.prunable), key=lambda p: p.weight.numel())
    moderate = [product for product in blocks if product.weight.numel() <= CURVE_WEIGHTS]
    return moderate[-1] if moderate else next(iter(blocks), None)


def drop(weight: Tensor, sparsity: float, seed: int = 0) -> Tensor:
    """Return a copy in which each weight was set to zero with a probability.

    Example:
        >>> 0.45 < float(drop(torch.ones(100, 100), 0.5).mean()) < 0.55
        True
    """
    drawn = torch.rand(weight.shape, generator=generator(seed, "bench", "zeros"))
    return weight.masked_fill(drawn < sparsity, 0)


def measure(
    product: Product,
    dtypes: Iterable[str],
    sparsities: Iterable[float],
    bandwidth: float,
    rounds: int = ROUNDS,
    group: int = GROUP,
    seconds: float = math.inf,
) -> list[LayerTime]:
    """Time one layer in every form; the arguments are those of `lowdim.infer.bench.timing.interleaved`."""
    dtypes = list(dtypes)
    forms = _matrices(product, dtypes, sparsities, group)
    runs: dict[Contestant, list[Callable[[], object]]] = {}
    for kind in ("bf16", *(d for d in dtypes if d == "fp32")):
        runs[baseline(kind)] = _torch_runs(product.weight.to(TORCH[kind]))
    for contestant, matrix in forms.items():
        runs[contestant] = _runs(matrix, TORCH.get(contestant.dtype, torch.bfloat16))
    times = interleaved(runs, rounds, seconds)
    sizes = {who: matrix.nbytes for who, matrix in forms.items()}
    sizes |= {baseline(d): product.weight.numel() * TORCH[d].itemsize for d in TORCH}
    return [_row(product, who, times, sizes[who], forms.get(who), bandwidth) for who in runs]


def _matrices(
    product: Product, dtypes: Sequence[str], sparsities: Iterable[float], group: int = GROUP
) -> dict[Contestant, Matrix]:
    found: dict[Contestant, Matrix] = {}
    zeros = product.zeros if product.prunable else 0.0
    own = {round(zeros, 4): product.weight} if zeros > 0.01 else {}
    drawn = {s: drop(_filled(product.weight), s) for s in sparsities if round(s, 4) not in own}
    for dtype in dtypes:
        found[Contestant("lowdim", dtype)] = Matrix.from_dense(product.weight, dtype, group, packed=False)
        for share, weight in sorted((own | drawn).items()) if dtype in PACKABLE else ():
            found[Contestant("lowdim", dtype, share)] = settle(Matrix.from_dense(weight, dtype, group))
    return found


def _filled(weight: Tensor) -> Tensor:
    """Return a weight whose zeros are zeros no longer, so that others can be drawn."""
    noise = torch.randn(weight.shape, generator=generator(0, "bench", "filling")).to(weight.dtype)
    return torch.where(weight == 0, noise * weight.abs().max(), weight)


def _torch_runs(weight: Tensor) -> list[Callable[[], object]]:
    x = torch.randn(1, weight.shape[1], generator=generator(0, "bench", "input")).to(weight.dtype)
    clones = [weight.clone() for _ in range(copies(weight.nbytes))]
    return [lambda w=w: functional.linear(x, w) for w in clones]  # type: ignore[misc]


def _runs(matrix: Matrix, dtype: torch.dtype) -> list[Callable[[], object]]:
    x = torch.randn(1, matrix.cols, generator=generator(0, "bench", "input")).to(dtype)
    clones = [clone(matrix) for _ in range(copies(matrix.nbytes))]
    return [lambda m=m: m.linear(x) for m in clones]  # type: ignore[misc]


def _row(
    product: Product,
    who: Contestant,
    seconds: Mapping[Contestant, float],
    size: int,
    matrix: Matrix | None,
    bandwidth: float,
) -> LayerTime:
    rows, cols = product.weight.shape
    dense = seconds[who.dense] / seconds[who] if who.engine == "lowdim" else None
    return LayerTime(
        names=product.names,
        count=product.count,
        rows=rows,
        cols=cols,
        engine=who.engine,
        dtype=who.dtype,
        sparsity=who.sparsity,
        kernel="torch" if matrix is None else matrix.kernel,
        microseconds=round(1e6 * seconds[who], 2),
        bytes=size,
        bandwidth_share=round(size / seconds[who] / bandwidth, 3),
        over_torch=round(seconds[BASELINE] / seconds[who], 3),
        over_dense=None if dense is None else round(dense, 3),
    )


def clone(matrix: Matrix) -> Matrix:
    """Return a matrix of the same contents in memory of its own."""
    tensors: dict[str, Any] = {name: tensor.clone() for name, tensor in matrix.tensors().items()}
    return replace(matrix, **tensors)
