"""``lowdim::packed_linear``: the product with a packed or dense matrix as a torch operator.

Its arguments are tensors and whole numbers alone, so that ``torch.compile`` and ``torch.export`` trace through it. What
the kernels need beyond them (row offsets, addresses, the proof that the tensors fit each other) is kept from the first
call on.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from lowdim.core.errors import LowdimError
from lowdim.infer.sparse.matrix import Matrix
from lowdim.infer.sparse.storage import KINDS

_SIGNATURE = (
    "packed_linear(Tensor x, Tensor values, Tensor? mask, Tensor? scales, Tensor? table, Tensor? bias, "
    "int kind, int group, int rows) -> Tensor"
)
_LIBRARY = torch.library.Library("lowdim", "DEF")
_known: dict[tuple[int, ...], Matrix] = {}


class GradientError(LowdimError):
    """A gradient through a sparse layer was asked for."""


def matrix_of(
    values: Tensor,
    mask: Tensor | None,
    scales: Tensor | None,
    table: Tensor | None,
    bias: Tensor | None,
    kind: int,
    group: int,
    rows: int,
    cols: int,
) -> Matrix:
    """Return the checked matrix of these tensors, made when they are first seen and kept as long as ``values`` lives.

    Raises:
        CheckpointError: the tensors do not fit each other.
    """
    key = _key(values, mask, scales, table, bias, kind, group, rows, cols)
    found = _known.get(key)
    if found is None:
        parts = {"values": values, "mask": mask, "scales": scales, "table": table}
        held = {name: tensor.detach() for name, tensor in parts.items() if tensor is not None}
        bias = None if bias is None else bias.detach()
        found = Matrix.from_stored(KINDS[kind], (rows, cols), held, group, bias)
        remember(found, values, key)
    return found


def remember(matrix: Matrix, values: Tensor, key: tuple[int, ...] | None = None) -> None:
    """Keep a matrix as long as a tensor lives, so that the operator need not check it again.

    Args:
        matrix: holds the same memory through tensors of its own; while it is kept, no other tensor has these addresses.
        values: the tensor that the operator will be given.
        key: of the matrix, where it is known.
    """
    if key is None:
        kind, m = KINDS.index(matrix.kind), matrix
        key = _key(m.values, m.mask, m.scales, m.table, m.bias, kind, m.group, m.rows, m.cols)
    _known[key] = matrix
    weakref.finalize(values, _known.pop, key, None).atexit = False


def refuse_gradients(x: Tensor) -> None:
    """Raise where a product with ``x`` would have to be differentiated."""
    if x.requires_grad and torch.is_grad_enabled():
        raise GradientError(
            "a sparse layer is for inference: it has no gradients. Call the model under torch.inference_mode() or "
            "torch.no_grad(); to train or to differentiate, keep the dense model (lowdim.models.load.load)."
        )


def _key(
    values: Tensor, mask: Tensor | None, scales: Tensor | None, table: Tensor | None, bias: Tensor | None, *sizes: int
) -> tuple[int, ...]:
    return (
        values.data_ptr(),
        0 if mask is None else mask.data_ptr(),
        0 if scales is None else scales.data_ptr(),
        0 if table is None else table.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        *sizes,
    )


def _packed_linear(x: Tensor, *packed: Any) -> Tensor:
    if x.requires_grad:
        refuse_gradients(x)
    parts = (*packed, x.shape[-1])
    known = _known.get(_key(*parts))
    if known is None:
        known = matrix_of(*parts)
    return known.linear(x)


def _shape_of_packed_linear(x: Tensor, *packed: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], packed[-1]))


_LIBRARY.define(_SIGNATURE)
_LIBRARY.impl("packed_linear", _packed_linear, "CPU")
torch.library.register_fake("lowdim::packed_linear", _shape_of_packed_linear, lib=_LIBRARY)

packed_linear = torch.ops.lowdim.packed_linear.default
