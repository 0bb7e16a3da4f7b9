"""Dormant neurons: those that stay silent whatever the network reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowdim.core.errors import NumericalError
from lowdim.core.lazy import torch
from lowdim.core.settings import Settings, within
from lowdim.evaluate.errors import EvaluationError

if TYPE_CHECKING:
    from torch import Tensor, nn

    Batch = Tensor | tuple[Any, ...] | Mapping[str, Any]


@dataclass(frozen=True)
class DormantLayer:
    """The neurons of one activation.

    Attributes:
        activation: where it is: the name of its module, or of the module that calls a function, with the function's.
        neurons: how many it has: channels of a convolution, features of any other layer.
        dormant: how many of them are dormant.
        which: bool [neurons].
    """

    activation: str
    neurons: int
    dormant: int
    which: Tensor


@dataclass(frozen=True)
class DormantNeurons:
    """A network.

    Attributes:
        share: dormant neurons over all.
        layers: the activations by the name of the layer with weights that ran last before them.
    """

    share: float
    layers: dict[str, DormantLayer]


@dataclass(frozen=True)
class Dormant(Settings):
    r"""Share of neurons whose activation is zero on a whole batch.

    With the activation h_i of neuron i, averaged over examples, places and tokens, and over the neurons k of its layer,

    .. math:: s_i = \frac{\operatorname{mean} |h_i|}{\operatorname{mean}_k \operatorname{mean} |h_k|} \le \tau

    is dormant. At tau = 0 that is a neuron without any output, which receives no gradient either: nothing
    but a new or dropped input wakes it. In a layer without any output all are dormant.

    Measured behind every ReLU, ReLU6, threshold, hardswish and hardsigmoid, whether a module or a
    function; with tau > 0, when small outputs count, behind the smooth activations too. Code that computes
    an activation from other functions is not seen.

    Args:
        tau: largest score of a dormant neuron.

    Paper: "The Dormant Neuron Phenomenon in Deep Reinforcement Learning", arXiv 2302.12902; for sparse
    networks, "NeurRev: Train Better Sparse Neural Network Practically via Neuron Revitalization", ICLR 2024.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2, bias=False), torch.nn.ReLU())
        >>> weight = torch.tensor([[0.2, 0.3, -2.0], [0.2, 0.3, 0.0]])
        >>> _ = model[0].weight.data.copy_(weight)
        >>> found = Dormant().measure(model, [torch.ones(1, 3)])
        >>> found.share, found.layers["0"].which.tolist()
        (0.5, [True, False])
    """

    tau: float = within(0.0, least=0, below=1, why="the mean score is 1")

    def measure(self, model: nn.Module, batches: Iterable[Batch]) -> DormantNeurons:
        """Return the dormant neurons of a model in evaluation mode; the model is left as it was.

        Args:
            model: any module.
            batches: inputs: tensors, tuples of arguments or mappings of keyword arguments. A neuron is
                dormant if it is on all of them together.

        Raises:
            EvaluationError: no batch, or no activation that can be dormant.
            NumericalError: an activation is NaN or Inf.
        """
        from lowdim.evaluate.probe.watch import Watch
        from lowdim.nn.blocks import evaluating

        if isinstance(batches, torch.Tensor):
            batches = [batches]
        watch, ran = Watch(model, smooth=self.tau > 0), False
        with evaluating(model), torch.no_grad(), watch:
            for batch in batches:
                ran = True
                if isinstance(batch, Mapping):
                    model(**batch)
                else:
                    model(*(batch if isinstance(batch, tuple) else (batch,)))
        if not watch.sums:
            why = "no activation of the ReLU kind ran" if ran else "no batch was given"
            raise EvaluationError(f"dormant neurons cannot be told: {why}. With tau > 0 smooth ones count")
        layers = {}
        for name, (activation, total) in watch.sums.items():
            if not bool(total.isfinite().all()):
                raise NumericalError(f"the activation behind {name!r} holds NaN or Inf")
            which = total <= self.tau * total.mean()
            layers[name] = DormantLayer(activation, which.numel(), int(which.sum()), which)
        neurons = sum(layer.neurons for layer in layers.values())
        return DormantNeurons(sum(layer.dormant for layer in layers.values()) / neurons, layers)
