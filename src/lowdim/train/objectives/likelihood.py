"""Log-probabilities of tokens with their gradient, without the logits of a whole batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowdim.core.errors import LowdimError
from lowdim.train.objectives.divergence import CHUNK, Side, Sums
from lowdim.train.objectives.rows import NO_LABEL, Parts, Scratch, differentiate_

_CE = Parts(0.0, 1.0, 1.0)


def token_likelihood(side: Side, labels: Tensor, *, chunk: int = CHUNK, scratch: Scratch | None = None) -> Tensor:
    """Return log softmax(z_i)[y_i] of every token, z being the logits, with its gradient.

    Logits are made ``chunk`` tokens at a time, and made again in the backward pass, where the weight of every token in
    the loss is known. There is no second derivative.

    Args:
        side: what the gradient goes to: states, and the head's weight and bias where they require it.
        labels: y, int64 ``[n]``.
        chunk: tokens whose logits are held at once.
        scratch: memory to be used again in the next call.

    Returns:
        fp32 ``[n]``.

    Example:
        >>> found = token_likelihood(Side(torch.zeros(2, 4)), torch.tensor([0, 3]))
        >>> found.exp()
        tensor([0.2500, 0.2500])
    """
    if bool(((labels < 0) | (labels >= side.vocabulary)).any()):
        raise LowdimError(f"labels must be tokens, from 0 to {side.vocabulary - 1}; {NO_LABEL} is none")
    found: Tensor = _Likelihood.apply(  # type: ignore[no-untyped-call]
        side.states, side.weight, side.bias, labels, chunk, scratch or Scratch()
    )
    return found


class _Likelihood(torch.autograd.Function):
    """The log-probabilities, whose gradient is computed on the way back."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        labels: Tensor,
        chunk: int,
        scratch: Scratch,
    ) -> Tensor:
        side, found = Side(states, weight, bias), [states.new_zeros(0, dtype=torch.float32)]
        for begin in range(0, len(states), chunk):
            end = min(begin + chunk, len(states))
            logits = side.logits(begin, end, "student", scratch)
            found.append(-differentiate_(logits, None, labels[begin:end], _CE, scratch)[1])
        ctx.save_for_backward(states, weight, bias, labels)
        ctx.chunk, ctx.scratch = chunk, scratch
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise LowdimError(
                "log-probabilities in chunks have first derivatives only; for gradients of gradients "
                "(create_graph=True) write them with torch's log_softmax"
            )
        states, weight, bias, labels = ctx.saved_tensors
        side = Side(states, weight, bias)
        sums = Sums(side, ctx.needs_input_grad)
        for begin in range(0, len(states), ctx.chunk):
            end = min(begin + ctx.chunk, len(states))
            logits = side.logits(begin, end, "student", ctx.scratch)
            differentiate_(logits, None, labels[begin:end], _CE, ctx.scratch)
            sums.add(logits.mul_(-g[begin:end, None].to(logits.dtype)), begin, end, ctx.scratch)
        found = zip((sums.states, sums.weight, sums.bias), (states, weight, bias), strict=True)
        return *(None if total is None else total.to(of.dtype) for total, of in found), None, None, None
