"""What an optimizer remembers of each weight."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Adagrad, Adamax, Optimizer, Rprop
from torch.utils.weak import WeakIdKeyDictionary

from lowdim.core.errors import LowdimError
from lowdim.train.ride import one_gradient
from lowdim.train.sparse.distributed import local
from lowdim.train.sparse.parts import part_of, whole_of


def per_weight(optimizer: Optimizer, parameter: nn.Parameter, name: str) -> dict[str, Tensor]:
    """Return the parts of an optimizer's state that hold one number per weight, by key.

    Single numbers (steps) and sums over rows or columns (Adafactor) say nothing about one weight and are left out.

    Args:
        optimizer: whose state is read.
        parameter: [...].
        name: of the parameter, for messages.

    Returns:
        Tensors of the parameter's shape, shared with the optimizer.

    Raises:
        LowdimError: a tensor of the state is none of these, so that a regrown weight could inherit what it had
            before.
    """
    whole = whole_of(parameter)
    for key, value in optimizer.state.get(whole, {}).items():
        if isinstance(value, Tensor) and value.shape == whole.shape and value.numel() > 1 and _is_coded(value):
            raise LowdimError(
                f"{type(optimizer).__name__} keeps {key!r} of {name} in codes ({type(value).__name__}, {value.dtype}), "
                "in which a single weight cannot be cleared. Use an optimizer whose state has the weight's shape in "
                "floating point, such as SGD, AdamW or Adafactor"
            )
        same = isinstance(value, Tensor) and value.shape == whole.shape
        wrong = [] if same else [t for t in _tensors(value) if not _is_sum(tuple(t.shape), tuple(whole.shape))]
        if wrong:
            raise LowdimError(
                f"{type(optimizer).__name__} keeps {key!r} of shape {tuple(wrong[0].shape)} for {name}, whose shape "
                f"is {tuple(parameter.shape)}: which of it belongs to which weight is unknown, so what a dropped "
                "weight left would leak into it when it grows again. Use an optimizer whose state has the weight's "
                "shape, such as SGD, AdamW or Adafactor"
            )
    return _numbers(optimizer, parameter)


def _numbers(optimizer: Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """Return the parts of a state that hold a number per weight, whatever else there is."""
    whole = whole_of(parameter)
    held = optimizer.state.get(whole, {})
    return {
        key: part_of(value, parameter)
        for key, value in held.items()
        if isinstance(value, Tensor) and value.shape == whole.shape and not _is_coded(value)
    }


def begin(optimizer: Optimizer, parameter: nn.Parameter, key: str) -> float:
    """Return the initial value of a part of the state: 0, except for Rprop's steps and Adagrad's sums.

    Adamax leaves its eps behind wherever it saw no gradient yet.
    """
    group = next(g for g in optimizer.param_groups if any(p is whole_of(parameter) for p in g["params"]))
    if isinstance(optimizer, Rprop) and key == "step_size":
        return float(group["lr"])
    if isinstance(optimizer, Adagrad) and key == "sum":
        return float(group["initial_accumulator_value"])
    if isinstance(optimizer, Adamax) and key == "exp_inf":
        return float(group["eps"])
    return 0.0


def mirrors(optimizer: Optimizer, key: str) -> bool:
    """Tell whether a part of the state is a second copy of the weight, as schedule-free optimizers keep, as "z"."""
    return key == "z" and callable(getattr(optimizer, "eval", None))


def forget(optimizer: Optimizer, parameter: nn.Parameter, off: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Let an optimizer forget what it remembers, weight by weight, of those that are off, bool [shape on this rank].

    Returns:
        Its tensors, where they held something, and what: for ``remember``.
    """
    gone = []
    for key, state in _numbers(optimizer, parameter).items():
        held, start = local(state), begin(optimizer, parameter, key)
        where = off.to(held.device) & (held != start)
        if bool(where.any()):
            gone.append((held, where, held[where]))
            held.masked_fill_(where, start)
    return gone


def remember(gone: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
    """Undo ``forget``."""
    for held, where, values in gone:
        held[where] = values


def _is_coded(value: Tensor) -> bool:
    """Tell whether a tensor holds codes of numbers, not the numbers."""
    return not (value.is_floating_point() or value.is_complex()) or type(value) not in (Tensor, nn.Parameter, DTensor)


def rehearse(optimizer: Optimizer, device: torch.device, moves: bool) -> None:
    """Let an optimizer of the same kind train a small weight, so that one that cannot be used is refused beforehand.

    One that cannot be made again from its settings is left for its first step to show.

    Raises:
        LowdimError: it needs several gradients in a step, or masks move and its state cannot be told apart by weights.
    """
    weight = nn.Parameter(torch.full((64, 128), 0.5, device=device))
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        weight.grad = torch.full_like(weight, 0.25)
        return weight.new_tensor(1.0)

    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            double = type(optimizer)([weight], **_settings(optimizer))
            getattr(double, "train", lambda: None)()  # schedule-free ones have the two modes of a module
            weight.grad = torch.full_like(weight, 0.25)
            step: Any = double.step
            step(*[closure] * ("closure" in inspect.signature(step).parameters))
    except Exception:  # whatever an optimizer of somebody else asks for
        return
    one_gradient(optimizer, calls)
    if moves:
        per_weight(double, weight, "a weight")


def _settings(optimizer: Optimizer) -> dict[str, Any]:
    """Return what an optimizer of the same kind is made with, out of the first group."""
    asked = list(inspect.signature(type(optimizer).__init__).parameters)[2:]
    return {name: optimizer.param_groups[0][name] for name in asked if name in optimizer.param_groups[0]}


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


def claim(owner: Any, layers: Iterable[Any]) -> None:
    """Note whose masks act on the layers' weights."""
    for layer in layers:
        _CLAIMED[whole_of(layer.parameter)] = ref(owner)


def release(layers: Iterable[Any]) -> None:
    """Let others act on the layers' weights."""
    for layer in layers:
        _CLAIMED.pop(whole_of(layer.parameter), None)
