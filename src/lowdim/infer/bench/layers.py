"""Products of one token with one layer: torch, our dense kernels, and a layer with zeros as `lowdim.load` keeps it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lowdim.core.random import generator
from lowdim.infer.bench.result import BASELINE, Contestant, LayerTime
from lowdim.infer.bench.timing import ROUNDS, copies, interleaved
from lowdim.infer.sparse.accelerate import Rules
from lowdim.infer.sparse.choose import runs, settle
from lowdim.infer.sparse.matrix import Matrix
from lowdim.infer.sparse.storage import PACKABLE

CURVE = (0.3, 0.5, 0.7, 0.9)
"""Sparsities at which one layer of every model is measured, with zeros drawn at random."""
CURVE_WEIGHTS = 2**24
GROUP = 64
TORCH = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Product:
    """The layers of a model that have one shape.

    Attributes:
        names: their kinds.
        count: how many there are.
        weight: one of them, ``[rows, cols]``, fp32 or bf16.
        prunable: whether sparsity is meant for it: not for the head.
        coded: dtype that its weights were stored in as codes, with a mask.
    """

    names: tuple[str, ...]
    count: int
    weight: Tensor
    prunable: bool = True
    coded: str | None = None

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
    """Return a copy of which a share, and not less, was set to zero: from some share on layers are packed.

    Example:
        >>> int(drop(torch.ones(100, 100), 0.3).sum())
        7000
    """
    drawn = torch.rand(weight.shape, generator=generator(seed, "bench", "zeros"))
    return weight.masked_fill(drawn <= drawn.flatten().kthvalue(math.ceil(sparsity * weight.numel())).values, 0)


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
    x = torch.randn(1, product.weight.shape[1], generator=generator(0, "bench", "input"))
    calls: dict[Contestant, list[Callable[[], object]]] = {}
    for kind in ("bf16", *(d for d in dtypes if d == "fp32")):
        weight, given = product.weight.to(TORCH[kind]), x.to(TORCH[kind])
        clones = [weight.clone() for _ in range(copies(weight.nbytes))]
        calls[Contestant("torch", kind)] = [lambda w=w, x=given: functional.linear(x, w) for w in clones]  # type: ignore[misc]
    for who, matrix in forms.items():
        calls[who] = runs(matrix, x.to(TORCH.get(who.dtype, torch.bfloat16)), copies(matrix.nbytes))
    times = interleaved(calls, rounds, seconds)
    sizes = {who: matrix.nbytes for who, matrix in forms.items()}
    sizes |= {Contestant("torch", d): product.weight.numel() * TORCH[d].itemsize for d in TORCH}
    return [_row(product, who, times, sizes[who], forms.get(who), bandwidth) for who in calls]


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
            if weight is product.weight and dtype == product.coded:
                packed = Matrix.from_dense(weight, dtype, group)
                found[Contestant("lowdim", dtype, share)] = settle(packed, packed.dense)
            else:
                found[Contestant("lowdim", dtype, share)] = Rules(dtype, group, None).matrix(weight, None)
    return found


def _filled(weight: Tensor) -> Tensor:
    """Return a weight whose zeros are zeros no longer, so that others can be drawn."""
    noise = torch.randn(weight.shape, generator=generator(0, "bench", "filling")).to(weight.dtype)
    return torch.where(weight == 0, noise * weight.abs().max(), weight)


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
