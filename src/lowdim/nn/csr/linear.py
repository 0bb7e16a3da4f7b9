"""`CSRLinear`: a linear layer that holds, multiplies and trains only the weights that are kept."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from lowdim.core.errors import LowdimError
from lowdim.core.native import warn_without_kernels
from lowdim.core.random import generator
from lowdim.core.transition import draw
from lowdim.nn.csr.index import Index
from lowdim.nn.csr.ops import csr_linear

_STORED = ("row_ptr", "col")


class CSRLinear(nn.Module):
    """``y = x W^T + b`` with a sparse ``W`` of which nothing but the kept values exists, for training on a CPU.

    ``values`` is an ordinary parameter, so any optimizer that works element by element trains it, and its state is
    as small as the values are. Forward, the gradient of the input, and the gradient of the values (at the kept
    positions alone) cost in proportion to what is kept. fp32 only: under autocast the input is cast to fp32; other
    types, devices and gradients of gradients are refused. Convolutions have no such layer.

    Args:
        in_features: columns of the weight, below 2^31.
        out_features: rows of the weight.
        positions: where the kept values are, int64 [kept], flat indices ``row * in_features + column``, ascending.
        values: fp32 [kept]; zeros if not given.
        bias: whether there is one, or its values, fp32 [out_features].

    Attributes:
        values: the kept weights, fp32 [kept], in the order of their flat index.
        row_ptr: int64 [out_features + 1], where the values of a row begin.
        col: int32 [kept], the column of every value.

    Raises:
        LowdimError: positions that are no positions of this weight, or tensors that do not fit.

    Example:
        >>> layer = CSRLinear(3, 2, torch.tensor([0, 5]), torch.tensor([2.0, -1.0]), bias=False)
        >>> layer(torch.tensor([[1.0, 10.0, 100.0]]))
        tensor([[   2., -100.]], grad_fn=...)
        >>> layer
        CSRLinear(in_features=3, out_features=2, bias=False, kept=2, sparsity=0.6667)
    """

    values: nn.Parameter
    bias: nn.Parameter | None
    row_ptr: Tensor
    col: Tensor
    cuts: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        positions: Tensor,
        values: Tensor | None = None,
        bias: bool | Tensor = True,
    ) -> None:
        super().__init__()
        warn_without_kernels()
        self.in_features, self.out_features = in_features, out_features
        index = Index.of(positions, (out_features, in_features))
        found = torch.zeros(index.kept) if values is None else _fp32("values", values, (index.kept,))
        self.values = nn.Parameter(found)
        offset = torch.zeros(out_features) if isinstance(bias, bool) else _fp32("bias", bias, (out_features,))
        self.register_parameter("bias", None if bias is False else nn.Parameter(offset))
        for name in _STORED:
            self.register_buffer(name, getattr(index, name))
        self.register_buffer("cuts", index.cuts, persistent=False)
        self._factors: list[tuple[Tensor, Tensor]] | None = None

    # ---------------------------------------------------------------- other ways to make one

    @classmethod
    def random(
        cls, in_features: int, out_features: int, kept: int, *, bias: bool = True, seed: int = 0, name: str = ""
    ) -> CSRLinear:
        """Draw ``kept`` positions uniformly, and values uniform in +-1/sqrt(kept inputs per output).

        Nothing of the size of the weight is made, which may be 10^6 x 10^6 and more. The scale is that of
        ``nn.Linear``, with the mean number of kept inputs for the number of inputs.

        Args:
            in_features: columns of the weight.
            out_features: rows of the weight.
            kept: how many weights exist.
            bias: whether to have one, drawn from the same range.
            seed: of the random choices.
            name: of the layer; layers of other names draw other numbers.

        Raises:
            LowdimError: ``kept`` is negative or more than the weight has.

        Example:
            >>> CSRLinear.random(10**6, 10**6, 1000).values.shape
            torch.Size([1000])
        """
        size = in_features * out_features
        if not 0 <= kept <= size:
            raise LowdimError(f"kept must be between 0 and {out_features} x {in_features} = {size}, got {kept}")
        nothing = torch.empty(0, dtype=torch.int64)
        positions = draw(kept, size, nothing, generator(seed, "mask", name))
        bound = 1 / sqrt(max(1.0, kept / max(1, out_features)))
        values, offset = torch.empty(kept), torch.empty(out_features)
        for tensor, purpose in ((values, "values"), (offset, "bias")):
            tensor.uniform_(-bound, bound, generator=generator(seed, purpose, name))
        return cls(in_features, out_features, positions, values, offset if bias else False)

    @classmethod
    def from_linear(cls, linear: nn.Linear, mask: Tensor) -> CSRLinear:
        """Keep the weights of a linear layer where ``mask`` (bool [out, in]) is True; the original is not changed.

        Raises:
            LowdimError: another kind of module or dtype, not on the CPU, or a mask of another shape.
        """
        if not isinstance(linear, nn.Linear):
            raise LowdimError(f"from_linear takes an nn.Linear, got {type(linear).__name__}.")
        weight = _fp32("weight", linear.weight.detach(), tuple(linear.weight.shape))
        if mask.shape != weight.shape or mask.dtype != torch.bool:
            raise LowdimError(f"mask must be bool {list(weight.shape)}, got {mask.dtype} {list(mask.shape)}.")
        positions = mask.flatten().nonzero().flatten()
        bias = False if linear.bias is None else linear.bias.detach()
        layer = cls(linear.in_features, linear.out_features, positions, weight.flatten()[positions], bias)
        layer.values.requires_grad_(linear.weight.requires_grad)
        if layer.bias is not None and linear.bias is not None:
            layer.bias.requires_grad_(linear.bias.requires_grad)
        return layer.train(linear.training)

    def to_linear(self) -> nn.Linear:
        """Return an ``nn.Linear`` with the same function, zeros where nothing is kept."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter(self.dense())
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach().clone())
        return linear.train(self.training)

    # ---------------------------------------------------------------- what is in it

    @property
    def index(self) -> Index:
        """Where the kept values are."""
        return Index((self.out_features, self.in_features), self.row_ptr, self.col, self.cuts)

    @property
    def kept(self) -> int:
        """How many weights exist."""
        return len(self.col)

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return 1 - self.kept / max(1, self.in_features * self.out_features)

    @property
    def nbytes(self) -> int:
        """Bytes of the parameters and the index."""
        tensors = (*self.parameters(), *self.buffers())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def positions(self) -> Tensor:
        """Return the flat positions of the values, int64 [kept], ascending."""
        return self.index.positions()

    def dense(self) -> Tensor:
        """Return the weight with its zeros, fp32 [out, in]; for weights that fit into memory."""
        weight = torch.zeros(self.out_features * self.in_features)
        weight[self.positions()] = self.values.detach()
        return weight.view(self.out_features, self.in_features)

    def weight_at(self, positions: Tensor) -> Tensor:
        """Return the weight at flat positions, int64 [n], 0 where nothing is kept; fp32 [n]."""
        known = self.positions()
        if not len(known):
            return torch.zeros(positions.shape)
        at = torch.searchsorted(known, positions).clamp_(max=len(known) - 1)
        return torch.where(known[at] == positions, self.values.detach()[at], 0.0)

    # ---------------------------------------------------------------- what it does

    def forward(self, x: Tensor) -> Tensor:
        """Map fp32 [..., in_features] to fp32 [..., out_features].

        Raises:
            LowdimError: another type (unless autocast is on), width or device.
        """
        if x.dtype != torch.float32 and torch.is_autocast_enabled("cpu"):
            x = x.float()
        if x.dtype != torch.float32 or x.device.type != "cpu" or not x.dim() or x.shape[-1] != self.in_features:
            raise LowdimError(
                f"a CSRLinear takes fp32 [..., {self.in_features}] on the CPU, got {x.dtype} {list(x.shape)} on "
                f"{x.device}."
            )
        y: Tensor = csr_linear(x, self.values, self.bias, self.row_ptr, self.col, self.cuts)
        if self._factors is not None and y.requires_grad:
            factors, inputs = self._factors, x.detach()
            y.register_hook(lambda gradient: factors.append((inputs, gradient.detach())))
        return y

    def watch(self, on: bool) -> None:
        """Keep, or no more, the inputs and output gradients whose product is the dense gradient of the weight.

        They are needed where weights grow by their gradient; several backward passes add up.
        """
        if on != (self._factors is not None):
            self._factors = [] if on else None

    @property
    def passed_over(self) -> bool:
        """Whether no gradient came since ``watch(True)``."""
        return self._factors == []

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return the inputs [batch, in] and output gradients [batch, out] since ``watch(True)``."""
        if not self._factors:
            raise LowdimError(
                "the dense gradient of a CSRLinear is known only if watch(True) came before the forward and backward"
            )
        parts = zip(*self._factors, strict=True)
        widths = self.in_features, self.out_features
        flat = [[t.reshape(-1, width) for t in part] for part, width in zip(parts, widths, strict=True)]
        x, g = (part[0] if len(part) == 1 else torch.cat(part) for part in flat)
        return x, g

    def finite(self) -> bool:
        """Tell whether what was watched holds neither NaN nor Inf."""
        return all(bool(tensor.isfinite().all()) for pair in self._factors or () for tensor in pair)

    def set_index(self, index: Index, values: Tensor) -> None:
        """Hold other positions, with the values there, fp32 [kept]; the parameter object stays, without gradient.

        Raises:
            LowdimError: the index is of another shape, or the values do not fit it.
        """
        if index.shape != (self.out_features, self.in_features):
            raise LowdimError(f"the index is of a weight {index.shape}, not {self.out_features, self.in_features}.")
        new = _fp32("values", values, (index.kept,))
        self.values.grad = None
        # Autograd expects gradients of the old size while an old graph lives
        if len(new) != len(self.values):
            self.values.data = torch.empty(0, dtype=torch.float64)  # another dtype makes it look again
        self.values.data = new
        self.row_ptr, self.col, self.cuts = index.row_ptr, index.col, index.cuts

    # ---------------------------------------------------------------- as a module

    def extra_repr(self) -> str:
        """Return the sizes and the sparsity."""
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{sizes}, kept={self.kept}, sparsity={self.sparsity:.4f}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CSRLinear:
        probe = fn(self.values.detach()[:0])
        if probe.dtype != torch.float32 or probe.device.type != "cpu":
            raise LowdimError(
                f"a CSRLinear trains in fp32 on the CPU and cannot become {probe.dtype} on {probe.device}; train a "
                "dense layer with a mask there: CSRLinear.to_linear()"
            )
        return self

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
        """Take an index and values, of which there may be another number, after checking them."""
        given = {name: state_dict.get(prefix + name) for name in (*_STORED, "values")}
        if all(isinstance(tensor, Tensor) for tensor in given.values()):
            row_ptr, col, values = (tensor.detach().cpu() for tensor in given.values() if tensor is not None)
            try:
                index = Index.stored((self.out_features, self.in_features), row_ptr.clone(), col.clone())
                self.set_index(index, values)
            except LowdimError as error:
                error_msgs.append(f"{prefix.removesuffix('.')}: {error}")
                return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def _fp32(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tensor.dtype != torch.float32 or tensor.device.type != "cpu" or tensor.shape != shape:
        raise LowdimError(
            f"{name} must be fp32 {list(shape)} on the CPU, got {tensor.dtype} {list(tensor.shape)} on {tensor.device}."
        )
    return tensor.detach().clone(memory_format=torch.contiguous_format)
