"""`SparseLinear`: a Linear whose weight stays packed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lowdim.core.errors import CheckpointError, LowdimError
from lowdim.infer.sparse.matrix import Matrix
from lowdim.infer.sparse.ops import matrix_of, packed_linear, refuse_gradients, remember
from lowdim.infer.sparse.storage import KINDS

_PARTS = ("values", "mask", "scales", "table", "bias")


class SparseLinear(nn.Module):
    """``y = x W^T + b`` with a packed (or dense, rounded) weight, for inference on a CPU.

    Works on activations of fp32, bf16 and fp16 and answers in their type. The stored tensors are buffers under the
    names that a packed checkpoint gives them, so that ``state_dict``, ``load_state_dict``, ``copy.deepcopy`` and
    safetensors work. They keep their own types: ``.to(dtype)``, ``.half()`` and their like leave a sparse layer as it
    is, and a move to a GPU is refused.

    Attributes:
        in_features: columns of the weight.
        out_features: rows of the weight.
        dtype: kind of the stored values: "fp32", "bf16", "int8", "int4" or "int3".
        group: columns per scale; 0 where there are no scales.
        shown: type in which ``weight`` is decoded, for models that multiply by it themselves; ``None`` for fp32 of fp32
            and bf16 of all else.

    Example:
        >>> layer = SparseLinear.from_linear(torch.nn.Linear(128, 3, bias=False), dtype="int8")
        >>> layer
        SparseLinear(in_features=128, out_features=3, bias=False, dtype=int8, group=64, sparsity=0.00)
        >>> layer(torch.ones(2, 128)).shape
        torch.Size([2, 3])
    """

    values: Tensor
    mask: Tensor | None
    scales: Tensor | None
    table: Tensor | None
    bias: Tensor | None
    shown: torch.dtype | None = None

    def __init__(self, matrix: Matrix) -> None:
        super().__init__()
        self.in_features, self.out_features = matrix.cols, matrix.rows
        self.dtype, self.group = matrix.kind, matrix.group
        self._kind = KINDS.index(matrix.kind)
        for name in _PARTS:  # a buffer that is None would lead torch.export astray
            if getattr(matrix, name) is None:
                setattr(self, name, None)
        self._hold(matrix)
        self.training = False

    @classmethod
    def from_linear(
        cls,
        linear: nn.Module,
        dtype: str | torch.dtype = "bf16",
        group: int = 64,
        mask: Tensor | None = None,
        packed: bool = True,
    ) -> SparseLinear:
        """Round and pack the weight of a Linear, or of Transformers' Conv1D; the original is not changed.

        Args:
            linear: ``nn.Linear`` or ``Conv1D`` on the CPU.
            dtype: "fp32", "bf16", "int8", "int4" or "int3", or the torch type of the first two.
            group: columns per scale, 64 or 128; for int8, int4 and int3.
            mask: bool ``[out, in]``, what to keep; ``None`` keeps whatever is not zero.
            packed: ``False`` stores every weight, which below some 30 % of zeros is faster; of int3 there is no other
                form.

        Raises:
            LowdimError: another kind of module, an unknown dtype or group, or weights that are not on the CPU.
            NumericalError: a weight to be quantised is NaN or Inf.
        """
        if not isinstance(linear, nn.Linear | Conv1D):
            raise LowdimError(f"from_linear takes a Linear or a Conv1D, got {type(linear).__name__}.")
        weight = linear.weight.detach()
        weight = weight.t() if isinstance(linear, Conv1D) else weight
        bias = None if linear.bias is None else linear.bias.detach().to(torch.float32, copy=True)
        return cls(Matrix.from_dense(weight, dtype, group, mask, bias, packed))

    def _hold(self, matrix: Matrix) -> None:
        tensors = matrix.tensors()
        for name in _PARTS:
            if name in tensors:
                self.__dict__.pop(name, None)
                self._buffers[name] = tensors[name].detach()
        remember(matrix, self.values)

    @property
    def matrix(self) -> Matrix:
        """The weight and the bias."""
        sizes = (self._kind, self.group, self.out_features, self.in_features)
        return matrix_of(self.values, self.mask, self.scales, self.table, self.bias, *sizes)

    @property
    def weight(self) -> Tensor:
        """The weight decoded, ``[out, in]``, fp32 or bf16, see ``shown``. Made anew on every access."""
        return self.matrix.unpack(dtype=self.shown or (torch.float32 if self.dtype == "fp32" else torch.bfloat16))

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return self.matrix.sparsity

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.matrix.nbytes

    @property
    def kernel(self) -> str:
        """What computes the product for few tokens, e.g. "packed int8, avx512"."""
        return self.matrix.kernel

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., in_features]`` to ``[..., out_features]``.

        Raises:
            GradientError: a gradient with respect to ``x`` would be needed.
            LowdimError: another type, width or device.
        """
        if x.requires_grad:
            refuse_gradients(x)  # the operator does so too, except in a compiled graph
        held = self._buffers  # Module.__getattr__ is slow
        product: Tensor = packed_linear(
            x,
            held["values"],
            held.get("mask"),
            held.get("scales"),
            held.get("table"),
            held.get("bias"),
            self._kind,
            self.group,
            self.out_features,
        )
        return product

    def extra_repr(self) -> str:
        """Return the sizes, the kind and the sparsity."""
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        group = f", group={self.group}" if self.group else ""
        return f"{sizes}, dtype={self.dtype}{group}, sparsity={self.sparsity:.2f}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SparseLinear:
        """Leave out casts, which are not for packed tensors, and refuse other devices."""
        for name, tensor in self._buffers.items():
            assert tensor is not None
            probe = fn(tensor[:0])
            if probe.device.type not in ("cpu", "meta"):
                raise LowdimError(
                    f"sparse layers run on the CPU and cannot move to {probe.device}. Load a dense model there: "
                    f"lowdim.load(path, device='{probe.device}')."
                )
            if probe.dtype == tensor.dtype:
                self._buffers[name] = fn(tensor)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Save what a file would hold, whatever form this machine has chosen for its memory."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.values.ndim == 4:
            held = self.matrix.masked()
            destination[prefix + "values"], destination[prefix + "mask"] = held.values, held.mask

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Take the tensors of a state dict, whose number of nonzeros may differ, after checking them."""
        found = {name: state_dict[prefix + name] for name in _PARTS if prefix + name in state_dict}
        records = self.values.ndim == 4
        wanted = set(self._buffers) | ({"mask"} if records else set())
        missing_keys += [prefix + name for name in sorted(wanted - found.keys())]
        own = {key for key in state_dict if key.startswith(prefix) and "." not in key[len(prefix) :]}
        unexpected_keys += sorted(own - {prefix + name for name in wanted}) if strict else []
        if not wanted <= found.keys():
            return
        bias = found["bias"].detach().to(torch.float32, copy=True) if "bias" in wanted else None
        held = {name: found[name].detach().clone() for name in wanted - {"bias"}}
        try:
            shape = (self.out_features, self.in_features)
            matrix = Matrix.from_stored(self.dtype, shape, held, self.group, bias)
            self._hold((matrix.in_records() if records else None) or matrix)
        except CheckpointError as error:
            error_msgs.append(f"{prefix.removesuffix('.')}: {error}")
