"""What a network holds in memory while it trains and while it runs: bytes counted, not measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from lowdim.core.errors import suggest
from lowdim.evaluate.cost.flops import run_hooked
from lowdim.evaluate.errors import EvaluationError

Storage = Literal["dense", "masked", "sparse"]
STORAGES: tuple[Storage, ...] = ("dense", "masked", "sparse")

_COLUMN, _ROW = 4, 8
"""Bytes of a column index (int32) and of a row pointer (int64), as the sparse executor stores them."""


@dataclass(frozen=True)
class Memory:
    """Bytes.

    Attributes:
        weights: all parameters.
        gradients: of all that need one.
        state: of the optimizer.
        masks: masks of a simulated, indices of a stored sparsity.
        activations: kept for the backward pass; at inference, the largest input and output of one layer.
    """

    weights: int
    gradients: int
    state: int
    masks: int
    activations: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.weights + self.gradients + self.state + self.masks + self.activations


def training_memory(
    model: nn.Module, kept: Mapping[str, int], storage: Storage, state: int = 2, activations: int = 0
) -> Memory:
    """Return what training holds at one density.

    "dense": nothing is sparse. "masked": dense weights, gradients and optimizer state, and a byte of mask per
    weight. "sparse": kept values, their gradients and state alone, with a column index (4 bytes) each and a
    row pointer (8 bytes) per row; a gradient wanted densely is taken in tiles.

    Args:
        model: dense, for the shapes and data types.
        kept: kept weights by parameter name; other parameters are dense.
        storage: how the named weights are held.
        state: tensors of optimizer state per weight, of the weight's type.
        activations: bytes, such as those of `saved_bytes`.

    Raises:
        EvaluationError: a name that the model lacks, or an unknown storage.

    Example:
        >>> model = nn.Linear(100, 10, bias=False)
        >>> [training_memory(model, {"weight": 50}, storage).total for storage in STORAGES]
        [16000, 17000, 1088]
    """
    sizes = _stored(model, kept, storage)
    weights = gradients = states = 0
    for name, parameter in model.named_parameters():
        held = sizes[name] * parameter.element_size()
        weights += held
        if parameter.requires_grad:
            gradients += held
            states += held * state
    masks = 0
    parameters = dict(model.named_parameters())
    if storage == "masked":
        masks = sum(parameters[name].numel() for name in kept)
    return Memory(weights, gradients, states, masks + _indices(parameters, kept, storage), activations)


def inference_memory(model: nn.Module, kept: Mapping[str, int], storage: Storage, activations: int = 0) -> Memory:
    """Return what running the model holds; arguments as in `training_memory`.

    A masked model has its zeros stored and needs no masks.

    Example:
        >>> model = nn.Linear(100, 10, bias=False)
        >>> [inference_memory(model, {"weight": 50}, storage).total for storage in STORAGES]
        [4000, 4000, 488]
    """
    sizes = _stored(model, kept, storage)
    weights = sum(sizes[name] * p.element_size() for name, p in model.named_parameters())
    return Memory(weights, 0, 0, _indices(dict(model.named_parameters()), kept, storage), activations)


def _stored(model: nn.Module, kept: Mapping[str, int], storage: Storage) -> dict[str, int]:
    """Return how many values of each parameter are held."""
    if storage not in STORAGES:
        raise EvaluationError(f"unknown storage {storage!r}. {suggest(str(storage), STORAGES)}")
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    for name in kept:
        if name not in sizes:
            raise EvaluationError(f"kept: the model has no parameter {name!r}. {suggest(name, sizes)}")
    return sizes | dict(kept) if storage == "sparse" else sizes


def _indices(parameters: Mapping[str, Tensor], kept: Mapping[str, int], storage: Storage) -> int:
    if storage != "sparse":
        return 0
    return sum(n * _COLUMN + (parameters[name].shape[0] + 1) * _ROW for name, n in kept.items())


def saved_bytes(model: nn.Module, *inputs: Any, **named: Any) -> int:
    """Return the bytes that a forward pass keeps for its backward pass, parameters left out.

    The pass runs in the mode that the model is in, on copies of its buffers and of the random state. On the meta device
    nothing is computed or held.

    Example:
        >>> saved_bytes(nn.Linear(8, 4), torch.zeros(2, 8))
        64
    """
    known = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    known |= {buffer.untyped_storage()._cdata for buffer in buffers.values()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:  # which tells storages of the meta device apart, too
            saved[storage._cdata] = storage.nbytes()
        return tensor

    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices), torch.enable_grad(), saved_tensors_hooks(pack, lambda tensor: tensor):
        held = functional_call(model, buffers, inputs, named)  # the graph keeps what it saved
    del held
    return sum(saved.values())


def live_bytes(model: nn.Module, *inputs: Any, **named: Any) -> int:
    """Return the largest input and output, together, of a module without children, in bytes.

    What branches of a network keep alive meanwhile is not in it.

    Example:
        >>> live_bytes(nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4)), torch.zeros(1, 8))
        48
    """
    most = 0

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        nonlocal most
        most = max(most, _bytes([*args, *kwargs.values()]) + _bytes(output))

    leaves = [module for module in model.modules() if not any(True for _ in module.children())]
    run_hooked(model, leaves, hook, inputs, named)
    return most


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0
