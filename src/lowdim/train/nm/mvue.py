"""MVUE: gradients made 2:4 along the tokens by chance, right on average."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

TINY = 1.19e-7


def inclusion(values: Tensor) -> Tensor:
    """Return how likely each of four is among two that are drawn one after the other by their magnitude.

    p_i = t_i + |a_i| sum_{j != i} t_j / (T - |a_j|), with T the sum of magnitudes and t = |a| / T.

    Args:
        values: [4, ...].

    Example:
        >>> [round(p, 4) for p in inclusion(torch.tensor([4.0, 3.0, 2.0, 1.0])).tolist()]
        [0.7159, 0.6083, 0.4413, 0.2345]
    """
    size = values.abs().float() + TINY
    total = size.sum(0)
    share = size / total / (total - size)
    return size / total + size * (share.sum(0) - share)


def sparsified(values: Tensor, draw: torch.Generator) -> Tensor:
    """Return values with two of every four neighbours along the first axis kept by chance, each over its probability.

    The mean over draws is the values. Source: arXiv 2203.10991, in the approximate form of FST, arXiv 2404.01847.

    Args:
        values: [tokens, ...]; zeros stand in for what is missing to a multiple of 4.
        draw: for the chance.

    Example:
        >>> found = sparsified(torch.tensor([[4.0], [3.0], [2.0], [1.0]]), torch.Generator().manual_seed(0))
        >>> int((found != 0).sum())
        2
    """
    filled = torch.cat([values, values.new_zeros(-len(values) % 4, *values.shape[1:])])
    four = filled.unflatten(0, (-1, 4)).transpose(0, 1)
    waits = torch.empty(four.shape, device=values.device).exponential_(generator=draw) / (four.abs().float() + TINY)
    kept = torch.zeros_like(waits, dtype=torch.bool).scatter_(0, waits.topk(2, dim=0, largest=False).indices, True)
    found = torch.where(kept, four / inclusion(four).to(four.dtype), 0.0)
    return found.transpose(0, 1).flatten(0, 1)[: len(values)]


class _Linear(torch.autograd.Function):
    """x W^T + b whose weight gradient is that of a sparsified gradient of the output."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, draw: Callable[[], torch.Generator]
    ) -> Tensor:
        """Return the product."""
        ctx.save_for_backward(x, weight)
        ctx.draw = draw
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Return the gradients of x, W and b."""
        (given,), (x, weight) = gradients, ctx.saved_tensors
        rows = given.reshape(-1, given.shape[-1])
        wanted = ctx.needs_input_grad
        return (
            given @ weight if wanted[0] else None,
            sparsified(rows, ctx.draw()).mT @ x.reshape(-1, x.shape[-1]) if wanted[1] else None,
            rows.sum(0) if wanted[2] else None,
            None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, draw: Callable[[], torch.Generator]) -> Tensor:
    """Return x W^T + b; in the backward pass W gets the gradient S(dY)^T X with S of `sparsified`.

    Args:
        x: [..., in].
        weight: [out, in].
        bias: [out].
        draw: called in the backward pass.
    """
    if torch.is_autocast_enabled(x.device.type):
        kind = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(kind), weight.to(kind), None if bias is None else bias.to(kind)
    found: Tensor = _Linear.apply(x, weight, bias, draw)  # type: ignore[no-untyped-call]
    return found
