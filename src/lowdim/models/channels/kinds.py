"""What layers do with channels, and where their tensors keep them."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map

_CONVS = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
_TRANSPOSED = {nn.ConvTranspose1d: 1, nn.ConvTranspose2d: 2, nn.ConvTranspose3d: 3}


@dataclass(frozen=True)
class Mixer:
    """A layer whose every output channel is made of all input channels: linear and full convolutions.

    Attributes:
        feature: the axis of the channels in its activations, from the end.
        outputs: the axis of output channels in its weight.
        inputs: the axis of input channels in its weight.
    """

    feature: int
    outputs: int
    inputs: int


@dataclass(frozen=True)
class Carrier:
    """A layer that hands every channel on by itself: batch norm, depth-wise convolution, PReLU.

    Attributes:
        feature: the axis of the channels in its activations.
        sizes: the attributes that say how many channels it has.
    """

    feature: int
    sizes: tuple[str, ...]


def kind_of(module: nn.Module) -> Mixer | Carrier | None:
    """Return what a layer does with channels; None if that is not known from its type.

    Example:
        >>> kind_of(nn.Conv2d(2, 4, 3)), kind_of(nn.LayerNorm(4))
        (Mixer(feature=-3, outputs=0, inputs=1), None)
        >>> kind_of(nn.Conv2d(4, 4, 3, groups=4))
        Carrier(feature=-3, sizes=('in_channels', 'out_channels', 'groups'))
    """
    if isinstance(module, _NormBase):
        return Carrier(1, ("num_features",))
    if isinstance(module, nn.PReLU) and module.num_parameters > 1:
        return Carrier(1, ("num_parameters",))
    if isinstance(module, nn.GroupNorm) and module.num_groups == module.num_channels:
        return Carrier(1, ("num_channels", "num_groups"))
    if set(module._parameters) != {"weight", "bias"} or module._parameters["weight"] is None:
        return None
    if isinstance(module, nn.Linear):
        return Mixer(-1, 0, 1)
    if type(module).__name__ == "Conv1D":  # the transposed linear layer of transformers
        return Mixer(-1, 1, 0)
    return _convolution(module)


def _convolution(module: Any) -> Mixer | Carrier | None:
    for kinds, outputs in ((_CONVS, 0), (_TRANSPOSED, 1)):
        for kind, axes in kinds.items():
            if not isinstance(module, kind):
                continue
            if module.groups == 1:
                return Mixer(-axes - 1, outputs, 1 - outputs)
            if module.groups == module.in_channels == module.out_channels:
                return Carrier(-axes - 1, ("in_channels", "out_channels", "groups"))
    return None


def plain(model: nn.Module) -> nn.Module:
    """Return the model inside of DistributedDataParallel and torch.compile."""
    while True:
        if isinstance(model, (DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def per_channel(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a carrier that hold something for each of its channels, on axis 0."""
    own = {**module._parameters, **module._buffers}
    return {name: t for name, t in own.items() if t is not None and t.ndim}


def resize(module: nn.Module, names: tuple[str, ...], size: int) -> None:
    """Tell a layer how many channels it has now."""
    for name in names:
        if hasattr(module, name):
            setattr(module, name, size)


def size_names(kind: Mixer, side: str) -> tuple[str, ...]:
    """Return the attributes that hold the number of a mixer's "outputs" or "inputs"."""
    return ("out_features", "out_channels", "nf") if side == "outputs" else ("in_features", "in_channels", "nx")


def replace_tensor(module: nn.Module, name: str, value: Tensor) -> None:
    """Put another tensor in the place of a parameter or a buffer."""
    if name in module._buffers:
        module._buffers[name] = value.detach().clone()
        return
    old = module._parameters[name]
    assert old is not None
    module._parameters[name] = nn.Parameter(value.detach().clone(), requires_grad=old.requires_grad)


def duplicate(model: nn.Module) -> nn.Module:
    """Return a copy of a model to try things on, in evaluation mode."""
    return copy.deepcopy(plain(model)).eval()


def single(model: nn.Module, example: Any) -> tuple[nn.Module, Any]:
    """Return a model, changed in place, and its example in single precision if they are in half, to compare outputs."""
    half = (torch.bfloat16, torch.float16)
    if not any(p.dtype in half for p in model.parameters()):
        return model, example
    return model.float(), tree_map(lambda t: t.float() if isinstance(t, Tensor) and t.dtype in half else t, example)


def call(model: nn.Module, example: Any) -> Any:
    """Run a model on an example: one input, a tuple of arguments, or a mapping of keyword arguments."""
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for device in {"cpu", *(p.device.type for p in model.parameters())}:
            stack.enter_context(torch.autocast(device, enabled=False))
        if isinstance(example, tuple):
            return model(*example)
        if isinstance(example, dict):
            return model(**example)
        return model(example)


def tensors(output: Any) -> list[Tensor]:
    """Return all tensors in what a model returned, in order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (list, tuple)):
        return [t for part in output for t in tensors(part)]
    return []
