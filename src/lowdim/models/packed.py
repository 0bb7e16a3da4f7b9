"""The packed form of a sparse weight: one bit per weight for where, the nonzeros for what. Lossless.

A value is zero if and only if all its bits are: a kept ``-0.0`` survives. On disk a weight ``layer.weight``
becomes

* ``layer.mask``: int64 ``[rows, ceil(cols / 64)]``; bit j of word c stands for column 64 c + j, least bit
  first;
* ``layer.values``: the nonzeros in row order, 1-D, in the weight's own dtype.

In memory, as the kernels want it, the mask has ``2 * ceil(cols / 128)`` words per row, the values are
followed by 128 bytes of zeros, and ``row_ptr`` int64 ``[rows + 1]`` holds the byte at which each row's values
begin. The difference is derived on loading, because stored it would cost a narrow layer (576 columns) 0.22
bits per weight. So the size on disk is 1 + b d bits per weight for b-bit values at density d, columns being a
multiple of 64: 5.8 for bfloat16 at 70 % sparsity.

Weights of more than two dimensions are packed as ``[all but the last, last]``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Container, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from lowdim.core.bits import pack_bits, unpack_bits, words_per_row
from lowdim.core.errors import CheckpointError

FORMAT = "1"
STEM = "packed"
TAIL_BYTES = 128
Counts = np.ndarray[tuple[int], np.dtype[np.int64]]
_WORD = 64
_CHUNK = 8 << 20
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits_of(weight: Tensor) -> Tensor:
    """View floating-point values as integers of the same width, for comparisons of bit patterns."""
    return weight.detach().cpu().contiguous().view(_INTEGERS[weight.dtype.itemsize])


def kept(weight: Tensor) -> Tensor:
    """Return the mask that a stored weight carries: True wherever its bits are not those of +0.0.

    Example:
        >>> kept(torch.tensor([[0.0, -0.0, 2.0]])).tolist()
        [[False, True, True]]
    """
    return bits_of(weight) != 0


def pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Split a weight into the mask and the values that go to disk.

    Args:
        weight: floating point, ``[..., cols]``.

    Returns:
        The mask, int64 ``[rows, ceil(cols / 64)]``, and the nonzeros, ``[nonzeros]`` in the weight's dtype.

    Raises:
        ValueError: the weight has no dimension or is not floating point.

    Example:
        >>> mask, values = pack(torch.tensor([[0.0, 1.5, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0]]))
        >>> mask.tolist(), values.tolist()
        ([[2], [8]], [1.5, 2.0])
    """
    if weight.ndim == 0 or not weight.is_floating_point():
        raise ValueError(
            f"weight must be floating point with at least one dimension, got {weight.dtype} {weight.ndim}-D"
        )
    bits = bits_of(weight).reshape(-1, weight.shape[-1])
    rows, cols = bits.shape
    mask = torch.zeros(rows, math.ceil(cols / _WORD), dtype=torch.int64)
    parts = [np.empty(0, bits.numpy().dtype)]
    for some in _row_chunks(rows, cols):
        nonzero = bits[some] != 0
        mask[some] = pack_bits(nonzero)[:, : mask.shape[1]]
        parts.append(bits[some].numpy()[nonzero.numpy()])
    return mask, torch.from_numpy(np.concatenate(parts)).view(weight.dtype)


def unpack(mask: Tensor, values: Tensor, shape: Sequence[int]) -> Tensor:
    """Rebuild the weight of the given shape, bit for bit; the inverse of `pack`.

    Raises:
        CheckpointError: mask and values do not belong together, or to a weight of this shape.

    Example:
        >>> unpack(torch.tensor([[2], [8]]), torch.tensor([1.5, 2.0]), (2, 4)).tolist()
        [[0.0, 1.5, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0]]
    """
    counts = _row_counts(mask, values, shape)
    rows, cols = len(counts), shape[-1]
    starts = np.concatenate([[0], np.cumsum(counts)])
    source = bits_of(values).numpy()
    weight = torch.zeros(tuple(shape), dtype=values.dtype)
    target = weight.view(_INTEGERS[values.dtype.itemsize]).reshape(rows, cols).numpy()
    for some in _row_chunks(rows, cols):
        chunk = unpack_bits(_padded(mask[some], cols), cols).numpy()
        target[some][chunk] = source[starts[some.start] : starts[min(some.stop, rows)]]
    return weight


def to_memory(mask: Tensor, values: Tensor, cols: int) -> dict[str, Tensor]:
    """Turn the stored form into the kernels' layout: ``mask``, ``values`` and ``row_ptr`` (see the module).

    Raises:
        CheckpointError: mask and values do not belong together.
    """
    counts = _row_counts(mask, values, (mask.shape[0], cols))
    tail = torch.zeros(TAIL_BYTES, dtype=torch.uint8).view(values.dtype)
    row_ptr = torch.zeros(len(counts) + 1, dtype=torch.int64)
    row_ptr[1:] = torch.from_numpy(np.cumsum(counts)) * values.dtype.itemsize
    return {"mask": _padded(mask, cols), "values": torch.cat([values, tail]), "row_ptr": row_ptr}


def encode(weight: Tensor) -> dict[str, Tensor]:
    """Encode a 2-D weight in the kernels' layout.

    Example:
        >>> tensors = encode(torch.tensor([[0.0, 1.5, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0]]))
        >>> tensors["mask"].tolist(), tensors["row_ptr"].tolist(), len(tensors["values"])
        ([[2, 0], [8, 0]], [0, 4, 8], 34)
    """
    if weight.ndim != 2:
        raise ValueError(f"weight must be 2-D, got {weight.ndim}-D")
    return to_memory(*pack(weight), weight.shape[1])


def decode(tensors: Mapping[str, Tensor], cols: int) -> Tensor:
    """Rebuild a 2-D weight from the kernels' layout, bit for bit; the inverse of `encode`."""
    mask, values = tensors["mask"], tensors["values"]
    nonzeros = int(tensors["row_ptr"][-1]) // values.dtype.itemsize
    return unpack(mask[:, : math.ceil(cols / _WORD)], values[:nonzeros], (mask.shape[0], cols))


def packed_bytes(weight: Tensor) -> int:
    """Bytes that `pack` would give, header not counted."""
    rows, cols = weight.numel() // max(weight.shape[-1], 1), weight.shape[-1]
    return (
        8 * rows * math.ceil(cols / _WORD) + int(torch.count_nonzero(bits_of(weight))) * weight.dtype.itemsize
    )


def stored_names(name: str) -> tuple[str, str]:
    """Return the names under which a packed weight's mask and values are stored.

    Example:
        >>> stored_names("model.layers.0.mlp.up_proj.weight")
        ('model.layers.0.mlp.up_proj.mask', 'model.layers.0.mlp.up_proj.values')
    """
    stem = name.removesuffix(".weight")
    return f"{stem}.mask", f"{stem}.values"


def free_names(name: str, taken: Container[str]) -> tuple[str, str]:
    """Return `stored_names`, neither of which is taken.

    Raises:
        CheckpointError: one is.
    """
    for key in stored_names(name):
        if key in taken:
            raise CheckpointError(f"cannot pack {name!r}: there is a tensor named {key!r} already")
    return stored_names(name)


def pack_shard(
    tensors: Mapping[str, Tensor], names: Container[str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Pack the named tensors of one shard and leave the others as they are.

    Returns:
        The tensors to store and the ``__metadata__`` that tells a reader how to undo it.

    Raises:
        CheckpointError: a name that packing needs is taken by another tensor.
    """
    stored: dict[str, Tensor] = {name: tensor for name, tensor in tensors.items() if name not in names}
    shapes: dict[str, list[int]] = {}
    for name in sorted(set(tensors) - set(stored)):
        stored |= zip(free_names(name, tensors.keys() | stored.keys()), pack(tensors[name]), strict=True)
        shapes[name] = list(tensors[name].shape)
    return stored, packed_metadata(shapes)


def packed_metadata(shapes: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Return the ``__metadata__`` entries of a file that holds packed weights of these shapes."""
    listed = {name: list(shapes[name]) for name in sorted(shapes)}
    return {"lowdim.format": FORMAT, "lowdim.packed": json.dumps(listed, separators=(",", ":"))}


def _padded(mask: Tensor, cols: int) -> Tensor:
    words = torch.zeros(mask.shape[0], words_per_row(cols), dtype=torch.int64)
    words[:, : mask.shape[1]] = mask
    return words


def _row_chunks(rows: int, cols: int) -> list[slice]:
    step = max(1, _CHUNK // max(cols, 1))
    return [slice(at, at + step) for at in range(0, rows, step)]


def _row_counts(mask: Tensor, values: Tensor, shape: Sequence[int]) -> Counts:
    """Check that a stored mask and its values fit each other and the shape; return each row's nonzeros."""
    cols = shape[-1]
    expected = (math.prod(shape[:-1]), math.ceil(cols / _WORD))
    if mask.dtype != torch.int64 or tuple(mask.shape) != expected:
        raise CheckpointError(f"the mask must be int64 {expected}, got {mask.dtype} {tuple(mask.shape)}")
    words = mask.contiguous().numpy()
    spare = expected[1] * _WORD - cols
    if spare and words.size and (words[:, -1].view(np.uint64) >> np.uint64(_WORD - spare)).any():
        raise CheckpointError(f"the mask has bits beyond column {cols}")
    counts: Counts = np.bitwise_count(words.view(np.uint64)).sum(axis=1, dtype=np.int64)
    if int(counts.sum()) != values.numel():
        raise CheckpointError(
            f"the mask has {int(counts.sum())} bits set, but there are {values.numel()} values"
        )
    return counts
