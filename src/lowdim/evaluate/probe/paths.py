"""Effective paths, nodes and weights: what of a sparse network its input and output can see."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowdim.core.errors import suggest
from lowdim.core.lazy import torch
from lowdim.evaluate.errors import EvaluationError

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class LayerPaths:
    """One masked layer.

    Attributes:
        weights: weights in all.
        kept: weights in the mask.
        effective: kept weights on at least one path from the input to the output of the network.
        inputs: input nodes (channels) with an effective weight, and in all.
        outputs: output nodes with an effective weight, and in all.
    """

    weights: int
    kept: int
    effective: int
    inputs: tuple[int, int]
    outputs: tuple[int, int]


@dataclass(frozen=True)
class Paths:
    """A network.

    Attributes:
        paths: number of effective paths; inf above 1.8e308.
        log10: its logarithm, always finite but for -inf where there is no path.
        layers: the masked layers.
    """

    paths: float
    log10: float
    layers: dict[str, LayerPaths]

    @property
    def nodes(self) -> int:
        """Effective nodes: the outputs of all masked layers and the inputs of the first."""
        layers = list(self.layers.values())
        return layers[0].inputs[0] + sum(layer.outputs[0] for layer in layers)

    @property
    def ineffective(self) -> int:
        """Kept weights that lie on no path."""
        return sum(layer.kept - layer.effective for layer in self.layers.values())


@dataclass(frozen=True)
class EffectivePaths:
    """Number of paths from input to output through kept weights, and the nodes and weights on them.

    The network runs on ones in float64 with every mask in place of its weight, other weights 1, biases 0.
    Its output is the number of paths, one for each place of a kernel that a convolution uses; weights and
    nodes are effective where a path passes. Activations, norms and dropout let paths pass; pooling,
    average or maximum, joins those of all the places it reads. The model is neither copied nor changed.

    Paper: "Towards Data-Agnostic Pruning At Initialization: What Makes a Good Sparse Mask?", NeurIPS 2023.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
        >>> masks = {"0.weight": torch.ones(2, 2) > 0, "2.weight": torch.tensor([[1, 0]]) > 0}
        >>> found = EffectivePaths().measure(model, masks, torch.ones(1, 2))
        >>> found.paths, found.layers["0.weight"].outputs, found.ineffective
        (2.0, (1, 2), 2)
    """

    def measure(self, model: nn.Module, masks: Mapping[str, Tensor], example: Tensor | tuple[Tensor, ...]) -> Paths:
        """Return the paths of a model.

        Args:
            model: any module of layers, sums, pooling and elementwise activations; products of activations
                (attention, gates, recurrent layers) have no paths.
            masks: bool by parameter name, of the parameters' shapes.
            example: an input of the usual shape, whose values are not used. Paths of all its rows are
                counted: give a batch of one.

        Raises:
            EvaluationError: no masks, a mask without its parameter or of another shape, an input of whole
                numbers, a function through which paths are not defined.
        """
        from torch.func import functional_call

        from lowdim.evaluate.probe.flow import PathCounter
        from lowdim.nn.blocks import evaluating

        _check(model, masks)
        state: dict[str, Tensor] = {name: buffer.clone() for name, buffer in model.named_buffers()}
        for name, parameter in model.named_parameters():
            if name in masks:
                state[name] = masks[name].to(parameter.device, torch.float64).requires_grad_()
            else:
                fill = torch.zeros_like if name.rpartition(".")[2].endswith("bias") else torch.ones_like
                state[name] = fill(parameter, dtype=torch.float64, requires_grad=False)

        def run(flow: PathCounter) -> tuple[Tensor, float]:
            inputs = flow.track(example if isinstance(example, tuple) else (example,))
            with flow:
                out = functional_call(model, state, inputs)
            return flow.total(out)

        with evaluating(model):
            with torch.no_grad():
                count, log = run(PathCounter(reach=False))
            with torch.enable_grad():
                reached, _ = run(PathCounter(reach=True))
                leaves = [state[name] for name in masks]
                gradients = torch.autograd.grad(reached, leaves, allow_unused=True)
        layers = {}
        for (name, mask), gradient in zip(masks.items(), gradients, strict=True):
            on = mask.new_zeros(mask.shape) if gradient is None else mask & (gradient > 0).to(mask.device)
            layers[name] = _layer(_owner(model, name), mask, on)
        number = float(count)
        total = -math.inf if number == 0 else math.log(number) + log
        return Paths(
            paths=number if log == 0 else (math.exp(total) if total < 709 else math.inf),
            log10=total / math.log(10),
            layers=layers,
        )


def _check(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    if not masks:
        raise EvaluationError("paths need masks; got none")
    for name, mask in masks.items():
        if name not in parameters:
            raise EvaluationError(f"the model has no parameter {name!r}. {suggest(name, parameters)}")
        if mask.shape != parameters[name].shape:
            raise EvaluationError(
                f"the mask of {name!r} has shape {list(mask.shape)}, its parameter {list(parameters[name].shape)}"
            )


def _owner(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def _layer(module: Any, mask: Tensor, on: Tensor) -> LayerPaths:
    """Count kept and effective weights, inputs and outputs of one layer."""
    groups = int(getattr(module, "groups", 1))
    grouped = on.flatten(2).any(2) if on.dim() > 2 else on
    if getattr(module, "transposed", False):
        grouped = grouped.unflatten(0, (groups, -1)).transpose(1, 2)
    else:
        grouped = grouped.unflatten(0, (groups, -1))
    inputs, outputs = grouped.any(1), grouped.any(2)
    return LayerPaths(
        weights=mask.numel(),
        kept=int(mask.sum()),
        effective=int(on.sum()),
        inputs=(int(inputs.sum()), inputs.numel()),
        outputs=(int(outputs.sum()), outputs.numel()),
    )
