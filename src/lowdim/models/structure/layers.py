"""Prunable layers: one `[out, in]` view of a weight, whatever module holds it.

Legend: a *layer* is one weight tensor's module; its *master* weight has the dtype of the checkpoint, while the module
may compute in another one. Masks, scores and repairs see the master; forwards see the module.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lowdim.core.errors import NumericalError
from lowdim.models.structure.routers import controls

PLAIN = frozenset({"Linear", "Conv1D", "FalconLinear"})
"""Classes, by name, that compute ``x W^T + b`` from a stored matrix. Subclasses of other names may hold a quantised or
an adapted weight, and are left alone."""


@dataclass
class Layer:
    """A prunable layer of a decoder block.

    Attributes:
        name: full dotted name in the model, e.g. ``model.layers.0.self_attn.q_proj``.
        module: the module whose input is the layer's input.
        parameter: full name of the parameter that holds the weight; an expert's is shared by the block's experts.
        master: the weight in the checkpoint's dtype, as the module stores it (``Conv1D`` stores ``[in, out]``).
    """

    name: str
    module: nn.Module
    parameter: str
    master: Tensor

    @property
    def transposed(self) -> bool:
        """Whether the module stores its weight as ``[in, out]`` (GPT-2's Conv1D)."""
        return isinstance(self.module, Conv1D)

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        rows, columns = self.master.shape
        return (columns, rows) if self.transposed else (rows, columns)

    def weight(self) -> Tensor:
        """Return the master weight as fp32 ``[out, in]``, a copy that may be overwritten.

        Raises:
            NumericalError: the weight holds NaN or Inf.
        """
        weight = self.master.t() if self.transposed else self.master
        weight = weight.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        if not bool(torch.isfinite(weight).all()):
            raise NumericalError(f"weight of {self.name!r} holds NaN or Inf. Repair the checkpoint.")
        return weight

    @torch.no_grad()
    def write(self, weight: Tensor) -> None:
        """Round an fp32 ``[out, in]`` weight to the master's dtype and hand it to the module.

        Zeros become +0.0 (``x + 0.0`` turns -0.0 into +0.0), since some sparse kernels misread -0.0.
        """
        self.master.copy_((weight.t() if self.transposed else weight) + 0.0)
        held = self.module.weight
        assert isinstance(held, Tensor)
        if held.data_ptr() != self.master.data_ptr():
            held.copy_(self.master)


def _reason(module: nn.Module) -> str | None:
    """Return why a module with a matrix weight cannot be pruned; ``None`` if it can."""
    if type(module).__name__ not in PLAIN or not isinstance(module, nn.Linear | Conv1D):
        return f"{type(module).__name__} is neither a plain Linear nor a Conv1D"
    if module._parameters.get("weight") is None:
        computed = ", ".join(name for name, p in module._parameters.items() if p is not None and p.dim() >= 2)
        return f"its weight is computed from {computed} by a hook; make it plain, as torch.nn.utils.prune.remove does"
    return None


def find_layers(block: nn.Module) -> tuple[list[tuple[str, nn.Module]], list[tuple[str, str]]]:
    """Return the prunable modules of a block, and what holds a matrix but is left dense, with the reason.

    Names are relative to the block and in the order of definition.

    Example:
        >>> prunable, skipped = find_layers(nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Embedding(4, 2)}))
        >>> [name for name, _ in prunable], skipped
        (['a'], [('b', 'Embedding is neither a plain Linear nor a Conv1D')])
    """
    prunable: list[tuple[str, nn.Module]] = []
    skipped: list[tuple[str, str]] = []
    steering = controls(block)
    for name, module in block.named_modules():
        matrices = [p for p in module.parameters(recurse=False) if p.dim() >= 2]
        if not matrices or not name:
            continue
        reason = steering.get(name) or _reason(module)
        if reason is None:
            prunable.append((name, module))
        else:
            skipped.append((name, reason))
    return prunable, skipped
