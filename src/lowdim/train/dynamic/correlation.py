"""How strongly two layers' neurons fire together, in one pass over the batches."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from lowdim.core.errors import LowdimError
from lowdim.train.sparse.distributed import local


class Correlation:
    """Running sums over what enters a linear layer and what leaves it, behind the activation.

    |cos|_qp = |sum_b y_bq x_bp| / sqrt(sum_b y_bq^2 sum_b x_bp^2); sums of every training batch since the last
    ``clear``, on all ranks together, but for batches that overflow. What leaves a layer is what enters the next
    one, and the softmax of the output for the last.

    Args:
        name: of the layer, for messages.
        module: the linear layer.
        following: the layer whose input is this one's output behind the activation; None for the last.
        model: that the layers are part of: each of its passes starts anew.
    """

    def __init__(self, name: str, module: nn.Linear, following: nn.Linear | None, model: nn.Module) -> None:
        self._name, self._module = name, module
        self._x: Tensor | None = None
        device = local(module.weight).device
        self._cross = torch.zeros(module.out_features, module.in_features, device=device)
        self._out = torch.zeros(module.out_features, device=device)
        self._in = torch.zeros(module.in_features, device=device)
        self._seen, self._replicated = False, False
        self._handles = [
            model.register_forward_pre_hook(self._begin),
            module.register_forward_pre_hook(self._enter),
            module.register_forward_hook(self._leave)
            if following is None
            else following.register_forward_pre_hook(self._follow),
        ]

    def _begin(self, module: nn.Module, args: Any) -> None:
        self._x = None

    def _enter(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._x = args[0].detach() if module.training else None
        self._replicated = DistributedDataParallel._get_active_ddp_module() is not None

    def _leave(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self._add(output.detach().softmax(-1))

    def _follow(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._add(args[0].detach())

    def _add(self, y: Tensor) -> None:
        if self._x is None:
            return
        x, self._x = self._x, None
        if x.shape[:-1] != y.shape[:-1] or x.data_ptr() == y.data_ptr():
            raise LowdimError(
                f"CTRE correlates what enters a linear layer with what enters the next one, but the layer after "
                f"{self._name} is fed with something else ({list(y.shape)} after {list(x.shape)}). It trains chains of "
                "linear layers: exclude this one, or use SET or RigL"
            )
        x, y = (part.float().reshape(-1, part.shape[-1]) for part in (x, y))
        square_out, square_in = y.square().sum(0), x.square().sum(0)
        sound = (square_out.sum() + square_in.sum()).isfinite()
        for total, new in ((self._cross, y.t() @ x), (self._out, square_out), (self._in, square_in)):
            total += torch.where(sound, new, 0.0)
        self._seen = True

    def cosine(self) -> Tensor:
        """Return |cos|, fp32 [out, in], zero where a neuron never fired; on several ranks all must call it.

        Raises:
            LowdimError: no batch was seen.
        """
        if not self._seen:
            raise LowdimError(
                f"CTRE saw no training batch pass through {self._name} before a mask update. It watches the model's "
                "own forward pass in training mode (model.train()), layer after layer as they are defined"
            )
        cross, out, into = self._cross, self._out, self._in
        if self._replicated or isinstance(self._module.weight, DTensor):
            cross, out, into = (total.clone() for total in (cross, out, into))
            for total in (cross, out, into):
                dist.all_reduce(total)
        norm = (out[:, None] * into[None, :]).sqrt()
        return torch.where(norm > 0, cross.abs() / norm, torch.zeros_like(norm))

    def clear(self) -> None:
        """Forget the batches seen."""
        self._seen = False
        for sums in (self._cross, self._out, self._in):
            sums.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Return the sums."""
        sums = {"cross": self._cross, "out": self._out, "in": self._in}
        return {"seen": self._seen} | {name: total.clone() for name, total in sums.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the sums of a ``state_dict``."""
        self._seen = state["seen"]
        self._cross.copy_(state["cross"])
        self._out.copy_(state["out"])
        self._in.copy_(state["in"])

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
