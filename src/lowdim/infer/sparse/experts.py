"""Mixture-of-experts weights held as 3-D tensors, as one module per expert that computes on its own.

Transformers keeps the experts of a block in two parameters, ``gate_up_proj [experts, 2 * width, hidden]`` and
``down_proj [experts, hidden, width]``. An `ExpertList` takes the place of such a module for good, with Linears that
are *views* of those parameters and may be swapped for faster ones. To watch the experts of any module while it
computes as it always did, see `lowdim.models.walk.opening`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn


def is_fused(module: nn.Module) -> bool:
    """Whether an `ExpertList` does what a module does with experts in a 3-D ``gate_up_proj`` and ``down_proj``.

    That is tried on a small stand-in, since experts of the same layout differ in gates, norms and biases.
    """
    up, down = getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None)
    if not (isinstance(up, nn.Parameter) and isinstance(down, nn.Parameter) and up.dim() == down.dim() == 3):
        return False
    fits = up.shape[0] == down.shape[0] and up.shape[1] == 2 * down.shape[2] and up.shape[2] == down.shape[1]
    return fits and set(module._parameters) == {"gate_up_proj", "down_proj"} and _computes_alike(module)


@torch.no_grad()
def _computes_alike(fused: nn.Module) -> bool:
    """Compare the module's own forward with that of an `ExpertList`, both with other, small weights."""
    count, (hidden, width) = fused.get_parameter("down_proj").shape[0], (6, 4)
    source = torch.Generator().manual_seed(0)
    stand_in = copy.copy(fused)
    stand_in._parameters = {
        "gate_up_proj": nn.Parameter(torch.randn(count, 2 * width, hidden, generator=source)),
        "down_proj": nn.Parameter(torch.randn(count, hidden, width, generator=source)),
    }
    x = 3 * torch.randn(8, hidden, generator=source)
    chosen = torch.arange(8)[:, None] % count
    weights = torch.rand(8, 1, generator=source)
    try:
        own = inspect.unwrap(type(fused).forward)(stand_in, x, chosen, weights)
        return torch.allclose(own, ExpertList(stand_in)(x, chosen, weights), 1e-4, 1e-5)
    except Exception:  # whatever a stand-in of another size or another signature runs into: it is no plain module
        return False


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


class Expert(nn.Module):
    """One expert: ``down(act(gate) * up)`` with ``gate, up = gate_up(x)``."""

    def __init__(self, gate_up: Tensor, down: Tensor, gating: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.gate_up_proj = _linear(gate_up)
        self.down_proj = _linear(down)
        self.gating = gating

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens ``[n, hidden]`` to ``[n, hidden]``."""
        out: Tensor = self.down_proj(self.gating(self.gate_up_proj(x)))
        return out


class ExpertList(nn.ModuleList):
    """The experts of a block, one module each, with the routing arithmetic of the fused module."""

    def __init__(self, fused: nn.Module) -> None:
        activation = fused.act_fn
        custom = getattr(fused, "_apply_gate", None)

        def gating(gate_up: Tensor) -> Tensor:
            if custom is not None:
                gated: Tensor = custom(gate_up)
                return gated
            gate, up = gate_up.chunk(2, dim=-1)
            product: Tensor = activation(gate) * up  # type: ignore[operator]
            return product

        up, down = fused.gate_up_proj, fused.down_proj
        assert isinstance(up, Tensor) and isinstance(down, Tensor)
        super().__init__(Expert(up.data[e], down.data[e], gating) for e in range(up.shape[0]))

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Route ``hidden_states [tokens, hidden]`` to the experts ``top_k_index [tokens, k]`` and mix the results."""
        out = torch.zeros_like(hidden_states)
        for index in (i for i in top_k_index.unique().tolist() if i < len(self)):
            expert, chosen = self[index], top_k_index == index
            token, slot = chosen.nonzero(as_tuple=True)
            mixed = expert(hidden_states[token]) * top_k_weights[token, slot, None]
            out.index_add_(0, token, mixed.to(out.dtype))
        return out
