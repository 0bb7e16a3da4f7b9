"""Mixture-of-experts weights held as 3-D tensors, opened into one Linear per expert and closed again.

Transformers keeps the experts of a block in two parameters, ``gate_up_proj [experts, 2 * width, hidden]`` and
``down_proj [experts, hidden, width]``. `opened` swaps such a module for an `ExpertList` whose Linears are *views* of
those parameters, so that hooks see each expert's input and a write to a Linear is a write to the 3-D tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def is_fused(module: nn.Module) -> bool:
    """Whether a module keeps its experts as 3-D ``gate_up_proj`` and ``down_proj`` that `ExpertList` can open."""
    up, down = getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None)
    if not (isinstance(up, nn.Parameter) and isinstance(down, nn.Parameter) and up.dim() == down.dim() == 3):
        return False
    plain = not getattr(module, "is_transposed", False) and not getattr(module, "has_bias", False)
    return plain and up.shape[1] == 2 * down.shape[2] and up.shape[2] == down.shape[1]


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
    """The experts of a block, one module each, with the routing arithmetic of the fused module.

    ``token_mask`` (bool ``[tokens]``, or ``None``) marks the tokens that count: padding is routed nowhere, so that it
    enters no expert's statistics. Nothing reads the hidden states of padded positions.
    """

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
        self.token_mask: Tensor | None = None

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Route ``hidden_states [tokens, hidden]`` to the experts ``top_k_index [tokens, k]`` and mix the results."""
        out = torch.zeros_like(hidden_states)
        for index in (i for i in top_k_index.unique().tolist() if i < len(self)):
            expert, chosen = self[index], top_k_index == index
            if self.token_mask is not None:
                chosen = chosen & self.token_mask[:, None]
            token, slot = chosen.nonzero(as_tuple=True)
            if token.numel() == 0:
                continue
            mixed = expert(hidden_states[token]) * top_k_weights[token, slot, None]
            out.index_add_(0, token, mixed.to(out.dtype))
        return out


@contextmanager
def opened(block: nn.Module) -> Iterator[list[ExpertList]]:
    """Open every fused experts module of a block; the fused modules, with the writes made, are back afterwards."""
    swapped: list[tuple[nn.Module, str, nn.Module]] = []
    lists: list[ExpertList] = []
    try:
        for parent in list(block.modules()):
            for name, child in list(parent.named_children()):
                if is_fused(child):
                    opened_list = ExpertList(child)
                    swapped.append((parent, name, child))
                    lists.append(opened_list)
                    setattr(parent, name, opened_list)
        yield lists
    finally:
        for parent, name, child in swapped:
            setattr(parent, name, child)
