"""Counting paths through a masked network, and moving the weights that lie on none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn

from lowdim.core.random import generator
from lowdim.train.initial.flow import Flow, linear_norms

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# The one of torch.nn.modules.activation that holds weights; its softmax passes constant shares on.
_ATTENTION = nn.MultiheadAttention
# Of a layer that carries less of the flow than this, what looks like flow is rounding.
_TINY_SHARE = 1e-12


def ones_flow(model: nn.Module, weights: Mapping[str, Tensor], example: Any) -> Flow:
    """Return a copy of the network in which every weight is 1, to count paths in."""
    flow = Flow(model, weights, example, torch.ones_like)
    linear_norms(flow.net, affine=False)
    for name, module in list(flow.net.named_modules()):
        if name and type(module).__module__ == nn.ReLU.__module__ and not isinstance(module, _ATTENTION):
            parent, _, last = name.rpartition(".")
            setattr(flow.net.get_submodule(parent), last, nn.Identity())
    return flow


def arriving(module: nn.Module, args: tuple[Any, ...]) -> Tensor:
    """Return the paths that arrive at each input channel, summed over samples and positions."""
    x: Tensor = args[0].detach()
    if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
        axis = x.ndim - 1 - len(module.kernel_size)
        return x.movedim(axis, 0).flatten(1).sum(1)
    return x.reshape(-1, x.shape[-1]).sum(0)


def repair(flow: Flow, masks: dict[str, Tensor], linear: set[str], seed: int) -> dict[str, Tensor]:
    """Move weights that lie on no path to the places of their layer where most paths pass.

    A move adds paths and takes none away, and may open places in other layers; so again, until nothing moves.
    """
    while True:
        flow.set({name: mask.double() for name, mask in masks.items()})
        total, gradients = flow.gradients()
        repaired = dict(masks)
        for name in linear:
            mask, passing = masks[name], gradients[name]
            if float((passing * mask).sum()) > _TINY_SHARE * total:
                repaired[name] = _moved(mask, passing, generator(seed, "repair", name))
        if all(repaired[name] is masks[name] for name in masks):
            return masks
        masks = repaired


def _moved(mask: Tensor, passing: Tensor, drawn: Generator) -> Tensor:
    """Return a layer's mask with its idle weights moved, as far as there are places; itself if nothing moves."""
    idle = (mask & ~(passing > 0)).reshape(-1).nonzero().flatten()
    better = (~mask & (passing > 0)).reshape(-1).nonzero().flatten()
    moved = min(len(idle), len(better))
    if not moved:
        return mask
    better = better[torch.randperm(len(better), generator=drawn).to(better.device)]
    best = passing.reshape(-1)[better].argsort(descending=True, stable=True)[:moved]
    flat = mask.reshape(-1).clone()
    flat[idle[:moved]] = False
    flat[better[best]] = True
    return flat.reshape(mask.shape)
