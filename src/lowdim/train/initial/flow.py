"""Copies of a network through which non-negative values flow, in float64."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lowdim.core.errors import NumericalError, RecipeError
from lowdim.train.initial.gradients import outputs_of

_CHANNELS = (nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)
_TRAILING = ("LayerNorm", "RMSNorm")
# Tried in turn until the flow neither overflows nor vanishes; see Flow.gradients.
_SCALES = (1.0, 1e-150, 1e-300, 1e150)


class Flow:
    """A copy of a network, in evaluation mode and float64, with non-negative weights and without biases.

    Args:
        model: the network; it is only read.
        weights: the weights to differentiate with respect to, by name.
        example: an input, a tuple or a mapping of them, or the shape of one. Floating-point inputs become ones; whole
            numbers, such as token ids, stay as they are.
        made: maps each parameter, other than biases, to its value in the copy.
    """

    def __init__(
        self, model: nn.Module, weights: Mapping[str, Tensor], example: Any, made: Callable[[Tensor], Tensor]
    ) -> None:
        memo: dict[int, Any] = {id(p.grad): None for p in model.parameters() if p.grad is not None}
        self.net = copy.deepcopy(model, memo).double().eval()
        self.weights: dict[str, nn.Parameter] = {name: memo[id(weight)] for name, weight in weights.items()}
        device = next(iter(weights.values())).device
        self.inputs = _ones(example, device)
        self._embeddings: list[tuple[Tensor, Tensor]] = []
        with torch.no_grad():
            for name, parameter in self.net.named_parameters():
                bias = "bias" in name.rpartition(".")[2]
                parameter.copy_(torch.zeros_like(parameter) if bias else made(parameter))
            for module in self.net.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                    module.running_mean.zero_()
                elif isinstance(module, nn.Embedding):
                    self._embeddings.append((module.weight, module.weight.clone()))

    def set(self, values: Mapping[str, Tensor]) -> None:
        """Write weights into the copy."""
        with torch.no_grad():
            for name, value in values.items():
                self.weights[name].copy_(value)

    def total(self) -> Tensor:
        """Return the sum of all outputs."""
        outputs = outputs_of(self.net, self.inputs)
        while isinstance(outputs, (tuple, list)):
            outputs = outputs[0]
        if not isinstance(outputs, Tensor):
            raise RecipeError(f"the model must return a tensor, or logits; got {type(outputs).__name__}")
        return outputs.sum()

    def gradients(self) -> tuple[float, dict[str, Tensor]]:
        """Return the total R and dR/dw for each weight, both up to one common factor if R leaves float64.

        A network without biases that is linear where its values are positive is homogeneous of degree one in its
        inputs. So where R overflows or vanishes, inputs and embeddings are scaled by a factor, and the output before it
        is differentiated by the same: all gradients change by one factor, and their order stays.

        Raises:
            NumericalError: no factor keeps the flow within float64.
        """
        found: tuple[float, dict[str, Tensor]] | None = None
        for scale in _SCALES:
            total, gradients = self._scaled(scale)
            if total.isfinite() and all(bool(g.isfinite().all()) for g in gradients.values()):
                found = float(total), gradients
                if float(total) > 0.0:
                    break
        self._scale(1.0)
        if found is None:
            raise NumericalError(
                "the flow of ones overflows float64, whatever it is scaled by: the network is too deep for its "
                "initial scale. Use a smaller initial scale"
            )
        return found

    def _scaled(self, scale: float) -> tuple[Tensor, dict[str, Tensor]]:
        self._scale(scale)
        with torch.enable_grad():
            total = self.total()
            found = torch.autograd.grad(
                total,
                list(self.weights.values()),
                grad_outputs=torch.full_like(total, scale),
                allow_unused=True,
                materialize_grads=True,
            )
        return total.detach(), dict(zip(self.weights, found, strict=True))

    def _scale(self, scale: float) -> None:
        with torch.no_grad():
            for tensor, value in self._embeddings:
                tensor.copy_(value * scale)
        self.inputs = _map(self.inputs, lambda x: torch.full_like(x, scale) if x.is_floating_point() else x)


def linear_norms(net: nn.Module, affine: bool) -> None:
    """Let norms that measure their input pass it on, times their gain plus their bias if ``affine``.

    Batch norms in evaluation mode do not measure; without ``affine`` they pass their input on as well.
    """
    for module in net.modules():
        batch = isinstance(module, nn.modules.batchnorm._BatchNorm)
        named = type(module).__name__.endswith(_TRAILING)
        if (batch and not affine) or isinstance(module, _CHANNELS) or named:
            module.forward = functools.partial(_pass, module, affine)


def _pass(module: nn.Module, affine: bool, x: Tensor) -> Tensor:
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not affine or weight is None:
        return x
    shape = (1, -1, *[1] * (x.ndim - 2)) if isinstance(module, _CHANNELS) else weight.shape
    scaled = x * weight.view(shape)
    shifted: Tensor = scaled if bias is None else scaled + bias.view(shape)
    return shifted


def _map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Mapping):
        return {key: _map(item, change) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(_map(item, change) for item in value)
    return change(value) if isinstance(value, Tensor) else value


def _ones(example: Any, device: torch.device) -> Any:
    if isinstance(example, (tuple, list)) and example and all(isinstance(n, int) for n in example):
        return torch.ones(tuple(example), dtype=torch.float64, device=device)
    tensors = itertools.chain([example], example.values() if isinstance(example, Mapping) else ())
    if not any(isinstance(x, (Tensor, tuple, list)) for x in tensors):
        raise RecipeError(
            f"the example must be an input of the model, or its shape such as (1, 3, 32, 32); got {example!r}"
        )
    return _map(
        example,
        lambda x: torch.ones_like(x, dtype=torch.float64, device=device) if x.is_floating_point() else x.to(device),
    )
