"""From the codes of the layers that were rounded to those of the tensors on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lowdim.core.quantize import Grid, Quantized, spread
from lowdim.models.disk.packed import Form, Packed, pack_levels
from lowdim.models.structure.layers import Layer
from lowdim.models.walk.stream import Stream


def stored_codes(
    stream: Stream,
    layers: Sequence[Layer],
    codes: Mapping[str, Quantized],
    held: Mapping[str, Tensor],
    grid: Grid,
    masked: bool = True,
) -> dict[str, Packed | None]:
    """Return the tensors of parameters that are stored together as they are stored: their codes, packed.

    A parameter may be several layers (experts), and several tensors on disk. Its levels and scales are given the
    weight's own shape, so that what Transformers does to the weight can be done to them.

    Args:
        stream: knows the names on disk.
        layers: the layers in the parameters that were pruned.
        codes: by layer; a layer that was left as it is has none.
        held: the parameters.
        grid: what was rounded to.
        masked: whether a level of 0 is a pruned weight; otherwise it is one like others, and no mask is stored.

    Returns:
        By name on disk; ``None`` for a tensor that its levels and scales do not describe. Tensors left as they were are
        missing.
    """
    if any(held[layer.parameter].dim() == 3 and layer.transposed for layer in layers):
        return dict.fromkeys(stream.named_on_disk(held))  # scales run along inputs, no tensor's last axis here
    levels: dict[str, Tensor] = {}
    steps: dict[str, Tensor] = {}
    turned = False
    for name, parameter in held.items():
        own = [layer for layer in layers if layer.parameter == name]
        turned = turned or any(layer.transposed for layer in own)
        shape = parameter.shape[::-1] if any(layer.transposed for layer in own) else parameter.shape
        levels[name], steps[name] = _laid_out(own, codes, shape, grid)
    scales, tensors = stream.named_on_disk(steps), stream.named_on_disk(held)
    found: dict[str, Packed | None] = {}
    for key, part in stream.named_on_disk(levels).items():
        if bool(part.any()) or not bool(tensors[key].any()):
            form = Form(tuple(tensors[key].shape), tensors[key].dtype, grid, turned, masked)
            found[key] = _pack(part, scales[key], tensors[key], form)
    return found


def _laid_out(
    layers: Sequence[Layer], codes: Mapping[str, Quantized], shape: torch.Size, grid: Grid
) -> tuple[Tensor, Tensor]:
    """Return the levels and, entry by entry, the scales of a parameter; zeros where a layer has no codes."""
    levels, steps = torch.zeros(shape, dtype=torch.int8), torch.zeros(shape, dtype=torch.bfloat16)
    for layer in layers:
        if layer.name in codes:
            place = int(layer.name.rsplit(".", 2)[1]) if len(shape) == 3 else ...
            own = codes[layer.name]
            levels[place] = own.levels.cpu()
            steps[place] = spread(own.scales, shape[-1], grid.group).cpu().to(torch.bfloat16)
    return levels, steps


def _pack(levels: Tensor, scales: Tensor, tensor: Tensor, form: Form) -> Packed | None:
    assert form.grid is not None
    columns = levels.shape[-1]
    starts = scales.reshape(-1, columns)[:, :: form.grid.group]
    try:
        made = pack_levels(levels.reshape(-1, columns), starts, form)
    except ValueError:  # two matrices in one tensor, each with a table of its own
        return None
    return made if torch.equal(made.weight(), tensor) else None
