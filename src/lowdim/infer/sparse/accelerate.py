"""Swap the Linears of a model for `SparseLinear`, in place."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lowdim.core.errors import LowdimError, NumericalError
from lowdim.core.quantize import Grid
from lowdim.infer.sparse.choose import settle
from lowdim.infer.sparse.experts import ExpertList, is_fused
from lowdim.infer.sparse.linear import SparseLinear
from lowdim.infer.sparse.matrix import Matrix
from lowdim.infer.sparse.storage import KIND_OF, PACKABLE, QUANTISED, kind_of
from lowdim.models.structure.layers import find_layers
from lowdim.nn.lowrank import LowRankLinear, put
from lowdim.nn.stock import refuse_to_save

_NOT_STOCK = (
    "a model with sparse layers cannot be saved as a stock one, which would not load again. Save the dense model "
    "and pack it with 'lowdim convert', or keep state_dict()."
)
MIN_SPARSITY = 0.3


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer.

    Attributes:
        name: dotted name in the model.
        shape: ``(out, in)``; of what was left alone, the shape of its weight as it is.
        sparsity: share of zeros in its weight.
        kernel: what computes it for few tokens, e.g. "packed int8, avx512"; "torch" where it was left alone.
        nbytes: bytes in memory; 0 where they are those of another module, as a tied head's are.
        note: why it is not packed, or was left alone; empty otherwise.
    """

    name: str
    shape: tuple[int, ...]
    sparsity: float
    kernel: str
    nbytes: int
    note: str = ""


@dataclass(frozen=True)
class Rules:
    """How layers are to be stored.

    Args:
        kind: "fp32", "bf16", "int8", "int4" or "int3".
        group: columns per scale, for int8, int4 and int3.
        min_sparsity: share of zeros from which on a layer is packed; below it is stored dense, as int3 always is.
            ``None`` leaves it to this machine: dense below `MIN_SPARSITY`, and above it wherever that is faster.

    Raises:
        LowdimError: a value that makes no sense.
    """

    kind: str
    group: int
    min_sparsity: float | None

    def __post_init__(self) -> None:
        if self.kind in QUANTISED:
            Grid.of(self.kind, self.group)
        if self.min_sparsity is not None and not 0 <= self.min_sparsity <= 1:
            raise LowdimError(f"min_sparsity must lie in [0, 1], got {self.min_sparsity!r}.")

    def for_head(self, tied: Tensor | None) -> Rules:
        """Return the rules for the head: 8 bits at least, and no rounding that would copy a tied embedding."""
        if self.kind in ("int4", "int3"):
            return Rules("int8", self.group, self.min_sparsity)
        if tied is None or self.kind in QUANTISED or tied.dtype not in (torch.float32, torch.bfloat16):
            return self
        return Rules(kind_of(tied.dtype), self.group, self.min_sparsity)

    def matrix(self, weight: Tensor, bias: Tensor | None) -> Matrix:
        """Store a weight ``[out, in]``: packed where it has zeros enough, else dense."""
        bias = None if bias is None else bias.detach().to(torch.float32, copy=True)

        def dense() -> Matrix:
            return Matrix.from_dense(weight, self.kind, self.group, bias=bias, packed=False)

        if self.kind not in PACKABLE or not weight.numel() or share_of_zeros(weight) < self.least:
            return dense()
        packed = Matrix.from_dense(weight, self.kind, self.group, bias=bias)
        return settle(packed, dense if self.min_sparsity is None else None, exact=False)

    @property
    def least(self) -> float:
        """Share of zeros below which a layer is stored dense."""
        return MIN_SPARSITY if self.min_sparsity is None else self.min_sparsity

    def note(self, layer: SparseLinear) -> str:
        """Say why a layer is not packed."""
        if layer.matrix.form != "dense":
            return ""
        if self.kind not in PACKABLE:
            return f"stored dense: {self.kind} weights skip no zeros"
        if self.min_sparsity is None and layer.sparsity >= MIN_SPARSITY:
            return "stored dense: faster on this machine than skipping zeros"
        return f"stored dense: below min_sparsity={self.least:g} skipping zeros does not pay"


def accelerate(
    model: nn.Module,
    dtype: str | torch.dtype = "bf16",
    group: int = 64,
    min_sparsity: float | None = None,
    head: bool = True,
) -> list[LayerReport]:
    """Swap the linear layers of a model for ones that skip zeros, in place; for inference on a CPU.

    Layers with few zeros, and all of int3, are stored dense and still run faster than torch's for few tokens. The head
    of a language model gets 8 bits where the rest gets 4 or 3. A head that is tied to the embedding shares its memory,
    unless it is quantised: it then has a copy of its own, and the embedding stays as it is. Experts that are fused into
    one tensor become layers of their own; of a layer of two factors
    (`lowdim.nn.lowrank`) each is swapped. Everything else (embeddings, routers) is left alone and listed. Afterwards no
    parameter of the model needs a gradient, and ``save_pretrained`` is refused.

    Args:
        model: in evaluation mode and on the CPU; any module, usually a Transformers causal LM.
        dtype: of the stored weights: "fp32", "bf16", "int8", "int4" or "int3", or the torch type of the first two.
        group: columns per scale, 64 or 128; for int8, int4 and int3.
        min_sparsity: share of zeros from which on a layer is packed; ``None`` for where it pays on this machine, which
            is measured (`lowdim.infer.sparse.choose`): never below 0.3.
        head: also swap the head of a language model.

    Returns:
        One row per layer with a matrix, in the order of the model.

    Raises:
        LowdimError: a value that makes no sense, or a model that was accelerated already, is in training mode or is not
            on the CPU. The model is then unchanged.
        NumericalError: a weight to be quantised holds NaN or Inf; the model is unchanged.

    Example:
        >>> model = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
        >>> [(row.name, row.shape) for row in accelerate(model, "int8")]
        [('0', (64, 128)), ('2', (8, 64))]
    """
    kind = kind_of(dtype)
    rules = Rules(kind, group, min_sparsity)
    _check_model(model)
    thin = [(name, module) for name, module in model.named_modules() if isinstance(module, LowRankLinear)]
    layers, skipped = find_layers(model)
    fused = [(name, module) for name, module in model.named_modules() if is_fused(module)]
    if rules.kind in QUANTISED:
        _check_finite([*layers, *fused, *thin])
    if not layers and not fused and not thin:
        raise LowdimError(
            f"{type(model).__name__} holds no Linear to swap. For a single layer: SparseLinear.from_linear(layer)."
        )
    for name, factors in thin:
        put(model, name, factors.apart())
    layers, skipped = find_layers(model) if thin else (layers, skipped)
    rows = [_left_alone(name, model.get_submodule(name), reason) for name, reason in skipped]
    rows = [row for row in rows if row.name not in dict(fused)]
    rows += [row for name, module in fused for row in swap_experts(model, name, module, rules)]
    top, tied = head_of(model)
    for name, linear in layers:
        reason = "the head, with head=False" if linear is top and not head else obstacle(linear)
        own = rules.for_head(tied) if linear is top else rules
        rows.append(_left_alone(name, linear, reason) if reason else _swap(model, name, linear, own, tied))
    finish(model)
    order = {name: index for index, (name, _) in enumerate(model.named_modules())}
    return sorted(rows, key=lambda row: order[row.name])


def finish(model: nn.Module) -> None:
    """Make a model with sparse layers refuse what cannot work: gradients, and being saved as if it were a stock one."""
    give_back_memory()
    model.requires_grad_(False)
    if isinstance(model, PreTrainedModel):
        refuse_to_save(model, _NOT_STOCK)


def give_back_memory() -> None:
    """Return to the system what the conversion of weights has left free; glibc would keep hundreds of megabytes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise LowdimError(f"accelerate takes a model, got {type(model).__name__}. To load one: lowdim.load(path).")
    if any(isinstance(module, SparseLinear) for module in model.modules()):
        raise LowdimError(
            "the model has sparse layers already. For another dtype load it again: lowdim.load(path, dtype=...)."
        )
    if model.training:
        raise LowdimError(
            "the model is in training mode, and sparse layers cannot be trained. Call model.eval() first."
        )
    for name, parameter in model.named_parameters():
        if parameter.device.type != "cpu":
            raise LowdimError(
                f"{name!r} is on {parameter.device}, and sparse layers run on the CPU. Move the model with .to('cpu')."
            )


def _check_finite(modules: list[tuple[str, nn.Module]]) -> None:
    for name, module in modules:
        if not all(bool(torch.isfinite(p).all()) for p in module.parameters(recurse=False)):
            raise NumericalError(
                f"{name!r} holds NaN or Inf, which cannot be quantised. Repair the checkpoint, or use dtype='bf16'."
            )


def head_of(model: nn.Module) -> tuple[nn.Module | None, Tensor | None]:
    """Return the head of a language model, and the embedding's weight if the two are one tensor."""
    if not isinstance(model, PreTrainedModel):
        return None, None
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings().weight
    tied = getattr(head, "weight", None) is embedding
    return (head, embedding) if tied and isinstance(embedding, Tensor) else (head, None)


def obstacle(linear: nn.Module) -> str:
    """Say why a Linear must be left alone; empty if it need not."""
    if linear._forward_hooks or linear._forward_pre_hooks:
        return "its forward hooks would be lost"
    weight = linear.weight
    assert isinstance(weight, Tensor)
    return "" if weight.dtype.itemsize > 1 and weight.is_floating_point() else f"its weight is {weight.dtype}"


def share_of_zeros(weight: Tensor) -> float:
    """Return the share of a tensor that is zero, 0.0 for an empty one."""
    return 1 - int(torch.count_nonzero(weight)) / weight.numel() if weight.numel() else 0.0


def _left_alone(name: str, module: nn.Module, reason: str) -> LayerReport:
    matrices = [p for p in module.parameters(recurse=False) if p.dim() >= 2]
    zeros = sum(share_of_zeros(p) * p.numel() for p in matrices) / max(1, sum(p.numel() for p in matrices))
    nbytes = sum(p.nbytes for p in module.parameters(recurse=False))
    return LayerReport(name, tuple(matrices[0].shape), zeros, "torch", nbytes, reason)


def _swap(model: nn.Module, name: str, linear: nn.Module, rules: Rules, tied: Tensor | None) -> LayerReport:
    held, bias = linear.weight, linear.bias
    assert isinstance(held, Tensor) and not isinstance(bias, nn.Module)
    weight = held.detach().t() if isinstance(linear, Conv1D) else held.detach()
    layer = SparseLinear(rules.matrix(weight, bias))
    layer.shown = held.dtype if held.dtype in KIND_OF else None
    replace(model, linear, layer)
    shared = held is tied and layer.values.data_ptr() == held.data_ptr()
    shape, nbytes = (layer.out_features, layer.in_features), 0 if shared else layer.nbytes
    return LayerReport(name, shape, share_of_zeros(held), layer.kernel, nbytes, rules.note(layer))


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in the place of another one, under every name that it has."""
    for parent in model.modules():
        for name, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, name, new)


def swap_experts(model: nn.Module, name: str, fused: nn.Module, rules: Rules) -> list[LayerReport]:
    """Open the experts that are fused in a module; only theirs are in memory twice meanwhile."""
    opened = ExpertList(fused)
    replace(model, fused, opened)
    return [_swap(model, f"{name}.{inner}", linear, rules, None) for inner, linear in find_layers(opened)[0]]
