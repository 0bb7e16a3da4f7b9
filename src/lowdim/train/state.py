"""What an optimizer remembers of each weight."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim import Optimizer

from lowdim.core.errors import LowdimError


def per_weight(optimizer: Optimizer, parameter: nn.Parameter, name: str) -> dict[str, Tensor]:
    """Return the parts of an optimizer's state that hold one number per weight, by key.

    Numbers (steps) and sums over rows or columns (Adafactor) hold nothing of a single weight and are left out.

    Args:
        optimizer: whose state is read.
        parameter: [...].
        name: of the parameter, for messages.

    Returns:
        Tensors of the parameter's shape, shared with the optimizer.

    Raises:
        LowdimError: a tensor of the state is none of these, so that a weight grown again could inherit what it
            had before.
    """
    found = {}
    for key, value in optimizer.state.get(parameter, {}).items():
        if not isinstance(value, Tensor) or value.numel() <= 1 < parameter.numel():
            continue
        if value.shape == parameter.shape:
            found[key] = value
        elif not _is_sum(tuple(value.shape), tuple(parameter.shape)):
            raise LowdimError(
                f"{type(optimizer).__name__} keeps {key!r} of shape {tuple(value.shape)} for {name}, whose shape is "
                f"{tuple(parameter.shape)}: which of it belongs to which weight is unknown, so what a dropped weight "
                "left would leak into it when it grows again. Use an optimizer whose state has the weight's "
                "shape, such as SGD, AdamW or Adafactor"
            )
    return found


def _is_sum(shape: tuple[int, ...], of: tuple[int, ...]) -> bool:
    """Tell whether a shape is that of sums over one axis, which is left out or kept with size 1."""
    return any(
        shape in (of[:axis] + of[axis + 1 :], (*of[:axis], 1, *of[axis + 1 :])) for axis in range(len(of))
    )
