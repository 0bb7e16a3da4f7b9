"""The gain of a norm: whether it is one, or one more than the weight, and how to set and scale it."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from lowdim.core.errors import LowdimError
from lowdim.core.random import generator


def neutral(norm: nn.Module) -> float | None:
    """Return the weight with which a norm has gain 1: 1, or 0 where it multiplies by 1 + weight; None without a gain.

    Raises:
        LowdimError: the norm is of another kind.

    Example:
        >>> neutral(nn.RMSNorm(4)), neutral(nn.RMSNorm(4, elementwise_affine=False))
        (1.0, None)
    """
    names = {name for name, _ in norm.named_parameters()}
    if not names:
        return None
    trial = deepcopy(norm).float()
    weight = dict(trial.named_parameters()).get("weight")
    if names <= {"weight", "bias"} and weight is not None and weight.dim() == 1:
        x = torch.randn(4, len(weight), generator=generator(0, "norm")).to(weight.device)
        for value in (1.0, 0.0):
            set_gain(trial, value)
            with torch.no_grad():
                size = trial(x).pow(2).mean().sqrt()
            if abs(float(size) - 1.0) < 0.1:
                return value
    raise LowdimError(
        f"{type(norm).__name__} has parameters {', '.join(sorted(names))} that are not the gain and the bias of a norm"
    )


@torch.no_grad()
def set_gain(norm: nn.Module, weight: float) -> None:
    """Fill the weight of a norm, and its bias with 0."""
    for name, parameter in norm.named_parameters():
        parameter.fill_(weight if name == "weight" else 0.0)


@torch.no_grad()
def scale_gain(norm: nn.Module, factor: float) -> None:
    """Multiply all that a norm returns by a factor, through its gain and bias, in place."""
    zero = neutral(norm) == 0.0
    for name, parameter in norm.named_parameters():
        shift = 1.0 if zero and name == "weight" else 0.0
        parameter.copy_((parameter.double() + shift) * factor - shift)


def is_neutral(norm: nn.Module) -> bool:
    """Tell whether a norm's gain is 1 and its bias 0 everywhere, as in a network that has not been trained."""
    value = neutral(norm) or 0.0
    return all(_all(p, value if name == "weight" else 0.0) for name, p in norm.named_parameters())


def _all(tensor: Tensor, value: float) -> bool:
    return bool((tensor == value).all())
