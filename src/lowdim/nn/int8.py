"""Weights that are kept in 8 bits while they are trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lowdim.core.errors import LowdimError
from lowdim.nn.grouped import dequantise, quantise

_ATEN = torch.ops.aten
_INNER = ("codes", "scales", "zeros")


class Int8Weight(Tensor):
    """A weight [m, n] of a linear layer as 8-bit codes; a parameter that takes gradients like any other.

    It stands for s (code - z), a scale s (fp32) and a zero point z (uint8) for every 256 codes in row-major order: 1 +
    5/256 bytes a weight. A linear layer reads it as floats in the forward pass and again in the backward pass and keeps
    neither; the gradient is a plain tensor of the weight's dtype. `move_` is how it changes. ``state_dict``,
    `torch.save`, ``deepcopy`` and ``.to`` keep the codes; ``.to(dtype)`` changes what it is read as. Any other
    operation gets the floats. Under ``fully_shard`` codes are what ranks hold and gather; each must have whole groups,
    rows times columns of a shard being a multiple of the group, and as many as any other.

    Source: Q-GaLore, arXiv 2407.08296.

    Args:
        codes: uint8 [m, n].
        scales: fp32 [groups].
        zeros: uint8 [groups].
        group: codes of a group.
        stochastic: whether `move_` rounds by chance.
        dtype: what it is read as.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> layer.weight = nn.Parameter(Int8Weight.of(torch.tensor([[0.0, 1.0, 2.0, 2.55], [0.0, 0.5, 1.0, 2.55]])))
        >>> layer.weight.codes.tolist()
        [[0, 100, 200, 255], [0, 50, 100, 255]]
        >>> layer(torch.ones(1, 4)).sum().backward()
        >>> layer.weight.grad.shape
        torch.Size([2, 4])
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    group: int
    stochastic: bool

    @staticmethod
    def __new__(
        cls, codes: Tensor, scales: Tensor, zeros: Tensor, group: int, stochastic: bool, dtype: torch.dtype
    ) -> Int8Weight:
        """Wrap codes."""
        made = Tensor._make_wrapper_subclass(cls, codes.shape, dtype=dtype, device=codes.device)
        made.codes, made.scales, made.zeros, made.group, made.stochastic = codes, scales, zeros, group, stochastic
        return made

    @classmethod
    def of(cls, weight: Tensor, group: int = 256, stochastic: bool = True) -> Int8Weight:
        """Return the nearest codes of a weight.

        Raises:
            LowdimError: it is no matrix, or not finite.
        """
        if weight.dim() != 2 or not bool(weight.isfinite().all()):
            raise LowdimError(
                f"INT8 weights are finite matrices; got one of shape {tuple(weight.shape)}"
                f"{'' if weight.dim() != 2 else ' that holds NaN or Inf'}. Leave it as it is."
            )
        return cls(*quantise(weight, 8, group), group, stochastic, weight.dtype)

    def floats(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the weight as a plain tensor."""
        return dequantise(self.codes, self.scales, self.zeros, self.group).to(dtype or self.dtype)

    def move_(self, change: Tensor, draw: torch.Generator, before: int = 0) -> None:
        """Add a change, and round to a grid made for the sum.

        Args:
            change: [m, n].
            draw: for rounding by chance, up with the probability of the fraction; not used if it is to the nearest.
            before: groups of the whole weight that come before these, of a shard: their draws are passed over.
        """
        if self.stochastic and before:
            torch.rand(before, self.group, generator=draw, device=draw.device)
        values = self.floats(torch.float32).add_(change)
        found = quantise(values, 8, self.group, draw if self.stochastic else None)
        for name, value in zip(_INNER, found, strict=True):
            getattr(self, name).copy_(value)

    def __repr__(self) -> str:  # type: ignore[override]
        """Name it with its shape."""
        return f"Int8Weight({tuple(self.shape)}, group={self.group}, dtype={self.dtype})"

    def __tensor_flatten__(self) -> tuple[list[str], dict[str, Any]]:
        """Say which tensors it is made of."""
        return list(_INNER), {"group": self.group, "stochastic": self.stochastic, "dtype": self.dtype}

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, Tensor], how: dict[str, Any], *_: Any) -> Int8Weight:
        """Make it of these tensors."""
        return cls(inner["codes"], inner["scales"], inner["zeros"], **how)

    # ---------------------------------------------------------------- shards

    def _rows(self, start: int, stop: int) -> Int8Weight:
        """Return some rows, sharing the memory.

        Raises:
            LowdimError: a group would be cut.
        """
        rows, width = self.shape
        first, last = start * width, stop * width
        if first % self.group or (last % self.group and stop < rows):
            raise LowdimError(
                f"rows {start} to {stop} of an INT8 weight of {rows} x {width} cut a group of {self.group} codes. Take "
                "fewer processes, so that each has whole groups, or use DistributedDataParallel."
            )
        groups = slice(first // self.group, -(-last // self.group))
        parts = self.codes[start:stop], self.scales[groups], self.zeros[groups]
        return Int8Weight(*parts, self.group, self.stochastic, self.dtype)

    def _shards(self, size: int | list[int], dim: int = 0) -> list[Int8Weight]:
        rows = self.shape[0]
        sizes = [min(size, rows - start) for start in range(0, rows, size)] if isinstance(size, int) else size
        if dim or len(set(sizes)) > 1:
            raise LowdimError(
                f"an INT8 weight of {tuple(self.shape)} shards by rows, as many for each process. Take a number of "
                "processes that divides them, or use DistributedDataParallel."
            )
        return [self._rows(index * sizes[0], (index + 1) * sizes[0]) for index in range(len(sizes))]

    def fsdp_pre_all_gather(self, mesh: Any) -> tuple[tuple[Tensor, ...], None]:
        """Return what ``fully_shard`` gathers of a shard."""
        return (self.codes, self.scales, self.zeros), None

    def fsdp_post_all_gather(
        self, gathered: tuple[Tensor, ...], metadata: None, dtype: torch.dtype, *, out: Tensor | None = None
    ) -> tuple[Int8Weight, tuple[Tensor, ...]] | None:
        """Return the whole weight of what was gathered; with ``out`` its memory holds it already."""
        if out is not None:
            return None
        codes, scales, zeros = gathered
        return Int8Weight(codes, scales, zeros, self.group, self.stochastic, dtype), gathered

    # ---------------------------------------------------------------- operations

    def _with(self, change: Callable[[Tensor], Tensor], dtype: torch.dtype | None = None) -> Int8Weight:
        codes, scales, zeros = (change(getattr(self, name)) for name in _INNER)
        return Int8Weight(codes, scales, zeros, self.group, self.stochastic, dtype or self.dtype)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let linear layers keep the codes instead of the floats."""
        if func is nn.functional.linear:
            return _linear(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():  # what comes out of other operations is no INT8 weight
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Copy, move and write codes; give every other operation the floats.

        Raises:
            LowdimError: an operation that writes into the weight, or cuts it otherwise than by rows.
        """
        kwargs = kwargs or {}
        first: Any = args[0] if args else None
        if func in (_ATEN.detach.default, _ATEN.alias.default):
            return first._with(lambda inner: inner)
        if func is _ATEN.clone.default:
            return first._with(torch.clone)
        if func is _ATEN._to_copy.default:
            device = kwargs.get("device")
            return first._with(lambda inner: inner.to(device, copy=True), kwargs.get("dtype"))
        if func is _ATEN.copy_.default and isinstance(first, Int8Weight):
            second = args[1]
            same = isinstance(second, Int8Weight) and second.group == first.group
            found = [getattr(second, name) for name in _INNER] if same else quantise(second, 8, first.group)
            for name, value in zip(_INNER, found, strict=True):
                getattr(first, name).copy_(value)
            return first
        if func in (_ATEN.split.Tensor, _ATEN.split_with_sizes.default):
            return first._shards(*args[1:], **kwargs)
        if func is _ATEN.slice.Tensor and _whole(first, *args[1:]):
            return first._with(lambda inner: inner)
        if func in (_ATEN.view.default, _ATEN.as_strided.default) and prod(args[1]) in (first.numel(), -1):
            return Int8Weight(
                first.codes.view(args[1]), first.scales, first.zeros, first.group, first.stochastic, first.dtype
            )
        if func is _ATEN.new_zeros.default and len(args[1]) == 2:  # as fully_shard makes a shard
            groups = -(-prod(args[1]) // first.group)
            parts = first.codes.new_zeros(args[1]), first.scales.new_zeros(groups), first.zeros.new_zeros(groups)
            return Int8Weight(*parts, first.group, first.stochastic, first.dtype)
        if isinstance(first, Int8Weight) and func._schema.is_mutable:
            raise LowdimError(f"{func} writes into an INT8 weight. Use copy_, or an optimizer that rounds: Projected.")
        plain = torch.utils._pytree.tree_map_only(Int8Weight, Int8Weight.floats, (args, kwargs))
        return func(*plain[0], **plain[1])


def _whole(weight: Tensor, dim: int = 0, start: int | None = 0, stop: int | None = None, step: int = 1) -> bool:
    """Tell whether a slice of a weight is all of it."""
    return not start and (stop is None or stop >= weight.shape[dim]) and step == 1


torch.serialization.add_safe_globals([Int8Weight])


class _Linear(torch.autograd.Function):
    """x W^T + b that keeps x and the codes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Int8Weight, bias: Tensor | None) -> Tensor:
        """Return the product."""
        ctx.save_for_backward(x, weight)
        return nn.functional.linear(x, weight.floats(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Return the gradients of x, W and b."""
        (given,), (x, weight) = gradients, ctx.saved_tensors
        rows = given.reshape(-1, given.shape[-1])
        wanted = ctx.needs_input_grad
        return (
            given @ weight.floats(given.dtype) if wanted[0] else None,
            rows.mT @ x.reshape(-1, x.shape[-1]) if wanted[1] else None,
            rows.sum(0) if wanted[2] else None,
        )


def _linear(input: Tensor, weight: Int8Weight, bias: Tensor | None = None) -> Tensor:
    kind = input.device.type
    if torch.is_autocast_enabled(kind):
        input = input.to(torch.get_autocast_dtype(kind))
    found: Tensor = _Linear.apply(input, weight, bias)  # type: ignore[no-untyped-call]
    return found


def linear(module: nn.Module) -> bool:
    """Tell whether the weight of a module may be INT8: that of a linear layer, or of the Conv1D of transformers."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def int8_(model: nn.Module, weights: Iterable[Tensor], stochastic: bool = True) -> list[nn.Parameter]:
    """Replace weights of a model's linear layers by INT8 ones; no float copy of them is left in the model.

    Args:
        model: changed.
        weights: parameters of it; those of no `linear` module stay.
        stochastic: whether updates are rounded by chance.

    Returns:
        The parameters in their places, replaced or not.

    Raises:
        LowdimError: a weight is sharded.
    """
    chosen = {id(weight): weight for weight in weights}
    made: dict[int, Any] = {}
    for module in model.modules():
        weight = getattr(module, "weight", None)
        place = id(weight)
        if linear(module) and isinstance(weight, Tensor) and place in chosen:
            if isinstance(weight, DTensor):
                raise LowdimError(
                    "a weight that is sharded already does not become INT8. Call int8_ before fully_shard."
                )
            if place not in made and not isinstance(weight, Int8Weight):
                made[place] = nn.Parameter(Int8Weight.of(weight.detach(), stochastic=stochastic))
            module.weight = made.get(place, weight)
    return [made.get(place, weight) for place, weight in chosen.items()]


def floats_(model: nn.Module) -> None:
    """Give a model plain floats in the place of its INT8 weights, to save it as a stock one."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if isinstance(parameter, Int8Weight):
                made.setdefault(id(parameter), nn.Parameter(parameter.floats()))
                setattr(module, name, made[id(parameter)])
