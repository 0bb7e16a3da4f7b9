"""``lowdim::csr_linear``: the product with a sparse weight as a torch operator with gradients.

The gradients are products again: the transposed one for the input, and one dot product over the batch per kept
value. Nothing of the weight's dense size is made.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowdim.core.errors import LowdimError
from lowdim.nn.csr import fallback
from lowdim.nn.csr.native import kernels, struct, threads

_LIBRARY = torch.library.Library("lowdim", "FRAGMENT")
_INDEX = "Tensor row_ptr, Tensor col, Tensor cuts"
_LIBRARY.define(f"csr_linear(Tensor x, Tensor values, Tensor? bias, {_INDEX}) -> Tensor")
_LIBRARY.define(
    f"csr_linear_backward(Tensor g, Tensor x, Tensor values, {_INDEX}, bool[3] needed) -> (Tensor, Tensor, Tensor)"
)


def _forward(x: Tensor, values: Tensor, bias: Tensor | None, row_ptr: Tensor, col: Tensor, cuts: Tensor) -> Tensor:
    rows, cols = len(row_ptr) - 1, x.shape[-1]
    flat = x.reshape(-1, cols) if x.numel() else x.new_empty(x.shape[:-1].numel(), cols)
    flat = flat if flat.is_contiguous() else flat.contiguous()
    found = kernels()
    if found is None:
        return fallback.forward(flat, values, bias, row_ptr, col).reshape(*x.shape[:-1], rows)
    y = x.new_empty(*x.shape[:-1], rows)
    weight = struct(values, row_ptr, col, cuts, cols)
    added = None if bias is None else bias.data_ptr()
    found.forward(weight, flat.data_ptr(), cols, len(flat), added, y.data_ptr(), rows, threads())
    return y


def _backward(
    g: Tensor, x: Tensor, values: Tensor, row_ptr: Tensor, col: Tensor, cuts: Tensor, needed: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    rows, cols, batch = len(row_ptr) - 1, x.shape[-1], x.shape[:-1].numel()
    flat_x, flat_g = x.contiguous().view(batch, cols), g.contiguous().view(batch, rows)
    d_x = torch.empty_like(x, memory_format=torch.contiguous_format) if needed[0] else x.new_empty(0)
    d_values = torch.empty_like(values) if needed[1] else x.new_empty(0)
    d_bias = x.new_empty(rows) if needed[2] else x.new_empty(0)
    found = kernels()
    if found is None:
        if needed[0]:
            d_x = fallback.input_gradient(flat_g, values, row_ptr, col, cols).view(x.shape)
        if needed[1]:
            d_values = fallback.value_gradient(flat_g, flat_x, row_ptr, col)
        return d_x, d_values, flat_g.sum(0) if needed[2] else d_bias
    at = [tensor.data_ptr() if want else None for tensor, want in zip((d_x, d_values, d_bias), needed, strict=True)]
    found.backward(
        struct(values, row_ptr, col, cuts, cols),
        *(flat_x.data_ptr(), cols, flat_g.data_ptr(), rows, batch),
        *(at[1], at[0], cols, at[2], threads()),
    )
    return d_x, d_values, d_bias


def _shape_of_forward(x: Tensor, values: Tensor, bias: Tensor | None, row_ptr: Tensor, *index: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], row_ptr.shape[0] - 1))


def _shape_of_backward(
    g: Tensor, x: Tensor, values: Tensor, row_ptr: Tensor, col: Tensor, cuts: Tensor, needed: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape if needed[0] else (0,)),
        x.new_empty(values.shape if needed[1] else (0,)),
        x.new_empty((row_ptr.shape[0] - 1 if needed[2] else 0,)),
    )


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, _, row_ptr, col, cuts = inputs
    ctx.save_for_backward(x, values, row_ptr, col, cuts)


def _differentiate(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    needed = list(ctx.needs_input_grad[:3])
    found = csr_linear_backward(g, *ctx.saved_tensors, needed)
    d_x, d_values, d_bias = (part if want else None for part, want in zip(found, needed, strict=True))
    return d_x, d_values, d_bias, None, None, None


def _forget(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pass


def _refuse(ctx: Any, *gradients: Tensor) -> Any:
    raise LowdimError(
        "a truly sparse layer has first derivatives only; for gradients of gradients (create_graph=True) train the "
        "dense layer with a mask: CSRLinear.to_linear()"
    )


_LIBRARY.impl("csr_linear", _forward, "CPU")
_LIBRARY.impl("csr_linear_backward", _backward, "CPU")
torch.library.register_fake("lowdim::csr_linear", _shape_of_forward, lib=_LIBRARY)
torch.library.register_fake("lowdim::csr_linear_backward", _shape_of_backward, lib=_LIBRARY)
torch.library.register_autograd("lowdim::csr_linear", _differentiate, setup_context=_remember, lib=_LIBRARY)
torch.library.register_autograd("lowdim::csr_linear_backward", _refuse, setup_context=_forget, lib=_LIBRARY)

csr_linear = torch.ops.lowdim.csr_linear.default
csr_linear_backward = torch.ops.lowdim.csr_linear_backward.default
