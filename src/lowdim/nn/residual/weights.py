"""The weights that an untrained network begins with, where a method has its own; all checks come before any change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lowdim.core.errors import LowdimError
from lowdim.nn.blocks import evaluating
from lowdim.nn.residual.norms import scale_gain
from lowdim.nn.residual.sites import Site, few_tokens, first_of

Change = Callable[[], None]


def last_layers(model: Any, branches: Sequence[nn.Module]) -> list[nn.Module]:
    """Return, for each branch, the linear layer inside whose output is that of the branch.

    Raises:
        LowdimError: a branch has none, as a mixture of experts.
    """
    made: dict[nn.Module, Tensor] = {}

    def hear(module: nn.Module, _: object, output: Any) -> None:
        made[module] = first_of(output)

    inside = [[m for m in branch.modules() if isinstance(m, nn.Linear | Conv1D)] for branch in branches]
    hooks = [m.register_forward_hook(hear) for m in {*branches, *(m for found in inside for m in found)}]
    try:
        with torch.no_grad(), evaluating(model):
            model(input_ids=few_tokens(model), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    ends: list[nn.Module] = []
    for branch, linears in zip(branches, inside, strict=True):
        found = [m for m in linears if m in made and torch.equal(made[m], made[branch])]
        if len(found) != 1:
            raise LowdimError(
                f"{type(branch).__name__} does not end in one linear layer (a mixture of experts?), so that there is "
                "none to scale"
            )
        ends += found
    return ends


def scaled_outputs(model: Any, sites: Sequence[Site]) -> list[Change]:
    """Return what gives the last matrix of each branch its standard deviation."""
    config = model.config.get_text_config(decoder=True)
    std = getattr(config, "initializer_range", None)
    if not std:
        raise LowdimError("the model's config has no initializer_range, from which the scaled one is told. Set it")
    target = std / sqrt(2 * len(sites))
    branches = [site.block.get_submodule(branch.layer) for site in sites for branch in site.branches]
    weights = [layer.get_parameter("weight") for layer in last_layers(model, branches)]
    return [partial(_scale, weight, torch.as_tensor(target / _std(weight))) for weight in weights]


def scaled_by_depth(sites: Sequence[Site]) -> list[Change]:
    """Return what divides the matrices of block l by sqrt(l)."""
    return [
        partial(_scale, weight, torch.as_tensor(1 / sqrt(block)))
        for block, site in enumerate(sites, 1)
        for weight in site.block.parameters()
        if weight.dim() > 1
    ]


def scaled_gains(sites: Sequence[Site]) -> list[Change]:
    """Return what multiplies the gains of the norms before the branches of block l by 1 / sqrt(l)."""
    return [
        partial(scale_gain, site.block.get_submodule(branch.before), 1 / sqrt(block))
        for block, site in enumerate(sites, 1)
        for branch in site.branches
    ]


def xavier(model: Any, sites: Sequence[Site], gain: float) -> list[Change]:
    """Return what gives matrices the standard deviation of Xavier's, with a gain unless they make queries or keys."""
    silent = _silent_outputs(model, sites)
    changes: list[Change] = []
    for site, branch in ((each, branch) for each in sites for branch in each.branches):
        layer = site.block.get_submodule(branch.layer)
        if any(parameter.dim() > 2 for parameter in layer.parameters()):
            raise LowdimError(f"{site.name}.{branch.layer} has stacked experts, for which DeepNorm has no rule")
        changes += [
            partial(_scale, m.weight, _factors(m, silent.get(m), gain))
            for m in layer.modules()
            if isinstance(m, nn.Linear | Conv1D)
        ]
    return changes


def _factors(module: nn.Linear | Conv1D, silent: Tensor | None, gain: float) -> Tensor:
    """Return what a matrix is multiplied by, one number per output, broadcast to its shape.

    Args:
        module: the layer.
        silent: bool [out], which outputs make queries or keys; None for none.
        gain: of the others.
    """
    turned = isinstance(module, Conv1D)
    weight = module.weight.detach().t() if turned else module.weight.detach()
    out, width = weight.shape
    silent = torch.zeros(out, dtype=torch.bool, device=weight.device) if silent is None else silent
    values, others = int((~silent).sum()), int(silent.sum())
    if values and others and others != 2 * values:
        raise LowdimError(
            f"queries, keys and values lie in one matrix of {out} rows, {values} of them values: which of the others "
            "are queries is not clear, so that they cannot be drawn as DeepNorm asks"
        )
    factors = torch.ones(out, device=weight.device)
    for part, size, own in ((~silent, values, gain), (silent, others // 2 if values else others, 1.0)):
        if bool(part.any()):
            factors[part] = own * sqrt(2 / (width + size)) / _std(weight[part])
    return factors if turned else factors[:, None]


def _silent_outputs(model: Any, sites: Sequence[Site]) -> dict[nn.Module, Tensor]:
    """Return which outputs of the linear layers in attention do not matter to one token alone, bool [out]."""
    parts = [site.block.get_submodule(site.branches[0].layer) for site in sites]
    layers = [[m for m in part.modules() if isinstance(m, nn.Linear | Conv1D)] for part in parts]
    weights = [m.weight for found in layers for m in found]
    needed = [weight.requires_grad for weight in weights]
    with torch.enable_grad(), evaluating(model):
        for weight in weights:
            weight.requires_grad_(True)
        logits = model(input_ids=few_tokens(model)[:, :1], use_cache=False)[0]
        gradients = iter(torch.autograd.grad(logits.float().pow(2).mean(), weights))
    for weight, needs in zip(weights, needed, strict=True):
        weight.requires_grad_(needs)
    silent: dict[nn.Module, Tensor] = {}
    for site, found in zip(sites, layers, strict=True):
        sizes = {m: next(gradients).float().norm(dim=0 if isinstance(m, Conv1D) else 1) for m in found}
        top = max(float(size.max()) for size in sizes.values())
        if not top:
            raise LowdimError(f"attention in {site.name} moves nothing. Is its last matrix zero? DeepNorm draws others")
        silent |= {m: size < 1e-5 * top for m, size in sizes.items()}
    return silent


def _std(weight: Tensor) -> float:
    size = float(weight.detach().float().std())
    if not size:
        raise LowdimError("a matrix of the model is one number everywhere, so that no factor gives it another spread")
    return size


@torch.no_grad()
def scale(layer: nn.Module, factor: float) -> None:
    """Multiply what a linear layer returns by a factor, in place."""
    for parameter in layer.parameters():
        parameter.copy_(parameter.double() * factor)


@torch.no_grad()
def _scale(weight: Tensor, factors: Tensor) -> None:
    weight.mul_(factors.to(weight.device))
