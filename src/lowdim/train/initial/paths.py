"""Counting paths through a masked network, and placing weights by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from lowdim.core.budget import apportion
from lowdim.core.random import derive_seed, generator
from lowdim.train.initial.base import Start
from lowdim.train.initial.flow import Flow, linear_norms
from lowdim.train.initial.solvers import Problem, solve

if TYPE_CHECKING:
    from lowdim.train.initial.npb import NPB

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
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


def balanced(method: NPB, start: Start, counts: Mapping[str, int]) -> dict[str, Tensor]:
    """Place weights in one forward pass, each layer under the masks of those before; then repair."""
    flow = ones_flow(start.model, start.weights, start.data)
    masks: dict[str, Tensor] = {}
    owners = {
        id(module.weight): module
        for module in flow.net.modules()
        if isinstance(module, (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)) or _is_conv1d(module)
    }
    handles = []
    for name, weight in flow.weights.items():
        place = _Placing(method, start.seed, name, counts[name], weight, masks)
        if id(weight) in owners:
            handles.append(owners[id(weight)].register_forward_pre_hook(place))
        else:
            place(nn.Module(), ())
    with torch.no_grad():
        flow.total()
    for handle in handles:
        handle.remove()
    for name, weight in flow.weights.items():  # a layer that the forward pass never reached
        if name not in masks:
            _Placing(method, start.seed, name, counts[name], weight, masks)(owners[id(weight)], ())
    linear = {name for name, weight in flow.weights.items() if id(weight) in owners}
    repaired = _repair(flow, masks, linear, start.seed)
    return {name: repaired[name].to(start.weights[name].device) for name in start.weights}


class _Placing:
    """A hook that masks its module's weight the moment its input is known."""

    def __init__(
        self, method: NPB, seed: int, name: str, count: int, weight: Tensor, masks: dict[str, Tensor]
    ) -> None:
        self.method, self.seed, self.name, self.count = method, seed, name, count
        self.weight, self.masks = weight, masks

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self.name in self.masks:  # a module called twice
            return
        transposed = isinstance(module, _TRANSPOSED) or _is_conv1d(module)
        weight = self.weight.transpose(0, 1) if transposed else self.weight
        kernels = weight.reshape(*weight.shape[:2], -1)
        groups = getattr(module, "groups", 1) if not transposed else 1
        paths = _arriving(module, args) if args else torch.ones(kernels.shape[1] * groups)
        method = self.method
        limit = kernels.shape[2] if not self.masks else min(method.max_kernel, kernels.shape[2])
        mask = _place(method, kernels.shape, paths.cpu(), groups, limit, self.count, self.seed, self.name)
        mask = mask.reshape(weight.shape).to(self.weight.device)
        self.masks[self.name] = (mask.transpose(0, 1) if transposed else mask).contiguous()
        with torch.no_grad():
            self.weight.mul_(self.masks[self.name])


def _is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"


def _arriving(module: nn.Module, args: tuple[Any, ...]) -> Tensor:
    """Return the paths that arrive at each input channel, summed over samples and positions."""
    x: Tensor = args[0].detach()
    if isinstance(module, (*_CONVOLUTIONS, *_TRANSPOSED)):
        axis = x.ndim - 1 - len(module.kernel_size)
        return x.movedim(axis, 0).flatten(1).sum(1)
    return x.reshape(-1, x.shape[-1]).sum(0)


def _place(
    method: NPB,
    shape: torch.Size,
    paths: Tensor,
    groups: int,
    limit: int,
    count: int,
    seed: int,
    name: str,
) -> Tensor:
    """Return a mask [out, in, kernel] with ``count`` weights; groups of channels are layers of their own."""
    outs, ins, size = shape
    drawn = generator(seed, "npb", name)
    numbers = np.random.default_rng(derive_seed(seed, "npb", name))
    parts = outs // groups
    shares = apportion([1.0] * groups, count, [parts * ins * size] * groups)
    made = []
    for arriving, share in zip(paths.reshape(groups, ins).double().numpy(), shares, strict=True):
        least = -(-share // (parts * ins)) if parts * ins else 0
        problem = Problem(arriving, parts, max(limit, least), share, method.alpha, method.beta)
        made.append(torch.from_numpy(solve(problem, method.solver, method.chunk, numbers)))
    return _inside(torch.cat(made), size, drawn)


def _inside(kernels: Tensor, size: int, drawn: Generator) -> Tensor:
    """Draw where in its kernel each weight lies: counts [out, in] to a mask [out, in, kernel]."""
    if size == 1:
        return kernels.bool().unsqueeze(2)
    ranks = torch.rand(*kernels.shape, size, generator=drawn).argsort(2).argsort(2)
    return ranks < kernels.unsqueeze(2)


def _repair(flow: Flow, masks: dict[str, Tensor], linear: set[str], seed: int) -> dict[str, Tensor]:
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
