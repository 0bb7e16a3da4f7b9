"""How strongly two layers' neurons fire together, in one pass over the batches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowdim.train.distributed import local


class Correlation:
    """Running sums over what enters a linear layer and what leaves it, behind the activation.

    |cos|_qp = |sum_b y_bq x_bp| / sqrt(sum_b y_bq^2 sum_b x_bp^2); sums of every batch since the last
    ``clear``. What leaves a layer is what enters the next one of the same width, and the softmax of the output
    for the last.

    Args:
        module: the linear layer.
        following: the layer whose input is this one's output behind the activation; None for the last.
    """

    def __init__(self, module: nn.Linear, following: nn.Linear | None) -> None:
        self._x: Tensor | None = None
        weight = local(module.weight)
        self._cross = torch.zeros(module.out_features, module.in_features, device=weight.device)
        self._out = torch.zeros(module.out_features, device=weight.device)
        self._in = torch.zeros(module.in_features, device=weight.device)
        self._handles = [module.register_forward_pre_hook(self._enter)]
        if following is None:
            self._handles.append(module.register_forward_hook(self._leave))
        else:
            self._handles.append(following.register_forward_pre_hook(lambda _, args: self._add(args[0])))

    def _enter(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._x = args[0].detach().float().flatten(0, -2) if module.training else None

    def _leave(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self._add(output.detach().softmax(-1))

    def _add(self, y: Tensor) -> None:
        if self._x is None:
            return
        x, y = self._x, y.detach().float().flatten(0, -2)
        self._x = None
        self._cross += y.t() @ x
        self._out += y.square().sum(0)
        self._in += x.square().sum(0)

    def cosine(self) -> Tensor:
        """Return |cos|, fp32 [out, in], zero where a neuron never fired."""
        norm = (self._out[:, None] * self._in[None, :]).sqrt()
        return torch.where(norm > 0, self._cross.abs() / norm, torch.zeros_like(norm))

    def clear(self) -> None:
        """Forget the batches seen."""
        for sums in (self._cross, self._out, self._in):
            sums.zero_()

    def state(self) -> dict[str, Tensor]:
        """Return the sums."""
        return {"cross": self._cross, "out": self._out, "in": self._in}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take the sums of a ``state``."""
        self._cross.copy_(state["cross"])
        self._out.copy_(state["out"])
        self._in.copy_(state["in"])

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
