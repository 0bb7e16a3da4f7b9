"""What an optimizer remembers of each weight."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from weakref import ref

from torch import Tensor, nn
from torch.optim import Adagrad, Optimizer, Rprop
from torch.utils.weak import WeakIdKeyDictionary

from lowdim.core.errors import LowdimError
from lowdim.train.sparse.parts import part_of, whole_of


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
    found, whole = {}, whole_of(parameter)
    for key, value in optimizer.state.get(whole, {}).items():
        if isinstance(value, Tensor) and value.shape == whole.shape:
            found[key] = part_of(value, parameter)
        elif wrong := [t for t in _tensors(value) if not _is_sum(tuple(t.shape), tuple(whole.shape))]:
            raise LowdimError(
                f"{type(optimizer).__name__} keeps {key!r} of shape {tuple(wrong[0].shape)} for {name}, whose shape "
                f"is {tuple(parameter.shape)}: which of it belongs to which weight is unknown, so what a dropped "
                "weight left would leak into it when it grows again. Use an optimizer whose state has the weight's "
                "shape, such as SGD, AdamW or Adafactor"
            )
    return found


def begin(optimizer: Optimizer, parameter: nn.Parameter, key: str) -> float:
    """Return what a part of the state begins with, for every weight: 0 but for Rprop's steps and Adagrad's sums."""
    group = next(g for g in optimizer.param_groups if any(p is whole_of(parameter) for p in g["params"]))
    if isinstance(optimizer, Rprop) and key == "step_size":
        return float(group["lr"])
    if isinstance(optimizer, Adagrad) and key == "sum":
        return float(group["initial_accumulator_value"])
    return 0.0


def _tensors(value: Any) -> list[Tensor]:
    """Return the tensors of more than one number in a value, which may be a list or a dict of them."""
    if isinstance(value, Tensor):
        return [value] if value.numel() > 1 else []
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for part in values for tensor in _tensors(part)]


def _is_sum(shape: tuple[int, ...], of: tuple[int, ...]) -> bool:
    """Tell whether a shape is that of sums over one axis, which is left out or kept with size 1."""
    return any(shape in (of[:axis] + of[axis + 1 :], (*of[:axis], 1, *of[axis + 1 :])) for axis in range(len(of)))


# ---------------------------------------------------------------- one mask for a weight

_CLAIMED: WeakIdKeyDictionary = WeakIdKeyDictionary()


def check_free(layers: Iterable[Any]) -> None:
    """Refuse weights on which somebody's masks act already.

    Raises:
        LowdimError: names the weight.
    """
    for layer in layers:
        if layer.parameter in _CLAIMED and _CLAIMED[layer.parameter]() is not None:
            raise LowdimError(
                f"another SparseTraining already keeps {layer.name} sparse, so two masks would act on it. Call "
                "remove() on that one first, or exclude the layer from one of them"
            )


def claim(owner: object, layers: Iterable[Any]) -> None:
    """Note whose masks act on the layers' weights."""
    for layer in layers:
        _CLAIMED[whole_of(layer.parameter)] = ref(owner)


def release(layers: Iterable[Any]) -> None:
    """Let others act on the layers' weights."""
    for layer in layers:
        _CLAIMED.pop(whole_of(layer.parameter), None)
