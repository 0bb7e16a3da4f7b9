"""From the codes of the layers that were rounded to those of the tensors on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lowdim.core.quantize import Grid, Quantized, spread
from lowdim.models.disk.packed import Form, Packed, pack_levels
from lowdim.models.walk.layers import Layer
from lowdim.models.walk.stream import Stream


def stored_codes(
    stream: Stream, layers: Sequence[Layer], codes: Mapping[str, Quantized], held: Tensor, grid: Grid
) -> dict[str, Packed | None]:
    """Return the tensors of one parameter as they are stored: their codes, packed.

    A parameter may be several layers (experts), and several tensors on disk. Its levels and scales are given the
    weight's own shape, so that what Transformers does to the weight can be done to them.

    Args:
        stream: knows the names on disk.
        layers: the layers that hold the parameter, those that were pruned.
        codes: by layer; a layer that was left as it is has none.
        held: the parameter.
        grid: what was rounded to.

    Returns:
        By name on disk; ``None`` for a tensor that its levels and scales do not describe. Tensors left as they were are
        missing.
    """
    if held.dim() == 3 and layers[0].transposed:  # scales run along inputs, which are no tensor's last axis here
        return dict.fromkeys(stream.named_on_disk({layers[0].parameter: held}))
    shape = held.shape if held.dim() == 3 else (1, *layers[0].shape)
    levels, steps = torch.zeros(shape, dtype=torch.int8), torch.zeros(shape, dtype=torch.bfloat16)
    for layer in layers:
        if layer.name in codes:
            place = int(layer.name.rsplit(".", 2)[1]) if held.dim() == 3 else 0
            own = codes[layer.name]
            levels[place] = own.levels.cpu()
            steps[place] = spread(own.scales, shape[2], grid.group).cpu().to(torch.bfloat16)
    if held.dim() == 2:
        levels, steps = levels[0], steps[0]
    name, turned = layers[0].parameter, layers[0].transposed
    scales = stream.named_on_disk({name: steps})
    tensors = stream.named_on_disk({name: held})
    found: dict[str, Packed | None] = {}
    for key, part in stream.named_on_disk({name: levels}).items():
        if bool(part.any()) or not bool(tensors[key].any()):
            form = Form(tuple(tensors[key].shape), tensors[key].dtype, grid, turned)
            found[key] = _pack(part, scales[key], tensors[key], form)
    return found


def _pack(levels: Tensor, scales: Tensor, tensor: Tensor, form: Form) -> Packed | None:
    assert form.grid is not None
    columns = levels.shape[-1]
    starts = scales.reshape(-1, columns)[:, :: form.grid.group]
    try:
        made = pack_levels(levels.reshape(-1, columns), starts, form)
    except ValueError:  # two matrices in one tensor, each with a table of its own
        return None
    return made if torch.equal(made.weight(), tensor) else None
