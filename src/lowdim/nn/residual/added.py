"""What a placement adds to a block beside norms: gates that scale the stream, and the share of a branch that counts.

Both are kept in fp32 whatever the model is cast to: in bf16 a gate loses small updates, and a share its last digits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class _Float(nn.Module):
    """A module whose own tensors stay fp32."""

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        held = [each.data.clone() for each in self._own()]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for each, value in zip(self._own(), held, strict=True):
            each.data = each.data.float() if value.is_meta else value.to(each.device)
        return self

    def _own(self) -> list[Tensor]:
        return [*self.parameters(recurse=False), *self.buffers(recurse=False)]


class Gates(_Float):
    """y = x - silu(a) sg(x): a smaller stream with the gradient of the whole one; sg stops gradients.

    dL/dx = dL/dy, and dL/da = -silu'(a) <x, dL/dy>. With a = 0, as at first, y = x. See
    `lowdim.nn.placement.gpas.GPAS`.

    Args:
        count: gates; 1 is shared by both branches.
        device: where they are.

    Example:
        >>> gates = Gates(1)
        >>> _ = gates.gate.data.fill_(0.1)
        >>> round(gates(torch.ones(1), 0).item(), 4)
        0.9475
    """

    def __init__(self, count: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(count, device=device))

    def forward(self, x: Tensor, at: int) -> Tensor:
        """Scale [..., width] after branch ``at``."""
        return x - self.share(at).to(x.dtype) * x.detach()

    def share(self, at: int) -> Tensor:
        """Return what is taken off after branch ``at``, silu(a), one number."""
        return nn.functional.silu(self.gate[min(at, len(self.gate) - 1)])


class Ramp(_Float):
    """y = a x, with a share ``a`` that training sets; it is saved with the weights.

    Args:
        device: where it is.
    """

    a: Tensor

    def __init__(self, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.register_buffer("a", torch.zeros((), device=device))

    def forward(self, x: Tensor) -> Tensor:
        """Scale [..., width]."""
        return x * self.a.to(x.dtype)
