"""NeuroFS: choose features by the input neurons that survive in a sparse network."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lowdim.core.allocation.er import er_epsilon
from lowdim.core.errors import LowdimError
from lowdim.core.random import generator
from lowdim.core.settings import check_all, count, within
from lowdim.core.topk import keep_top
from lowdim.train.estimators.data import Rows, batches, refuse_divergence, rows, seed_of
from lowdim.train.estimators.evolution import NeuronEvolution
from lowdim.train.estimators.setmlp import check_widths
from lowdim.train.loop import Loop
from lowdim.train.sparse.training import SparseTraining

try:
    from sklearn.base import BaseEstimator
    from sklearn.feature_selection import SelectorMixin
    from sklearn.utils.multiclass import type_of_target
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise LowdimError("NeuroFS needs scikit-learn 1.6 or newer; run: pip install 'lowdim[train]'") from error

_ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


@dataclass(eq=False, repr=False)
class NeuroFS(SelectorMixin, BaseEstimator):  # type: ignore[misc]
    """Selects features: a sparse network is trained on the labels while its input neurons compete for connections.

    A scikit-learn transformer: ``fit``, ``transform``, ``get_support``, ``get_feature_names_out``. Labels make it
    classify, numbers regress. Scale the features beforehand (``StandardScaler``). Equal seeds select equally, whatever
    the global generators do. See `lowdim.train.estimators.evolution.NeuronEvolution` for how neurons are removed and
    exchanged.

    Paper: "Supervised Feature Selection with Neuron Evolution in Sparse Neural Networks", TMLR 2023, arXiv 2303.07200.

    Args:
        n_features_to_select: K.
        hidden: neurons of the hidden layers.
        epsilon: a hidden layer keeps epsilon * (inputs + outputs) weights, all of them if it has no more. So that
            neurons have to compete, the first layer should keep fewer than ``n_features_to_select`` inputs could have.
        zeta_in: share of the first layer's weights that moves after an epoch, and rate of exchange of its neurons.
        zeta_hid: share of the other layers' weights that moves.
        remove_until: share of the epochs after which no more neurons are removed.
        activation: "tanh", or "relu".
        learning_rate: of SGD.
        momentum: of SGD.
        weight_decay: weight_decay * |w|^2 of the hidden layers is added to the loss.
        batch_size: examples of a step.
        epochs: passes over the data.
        random_state: seed, ``RandomState``, or None for other numbers each time.

    Attributes:
        support_: which features are selected, bool [features].
        strength_: sum of |w| of every input neuron at the end, [features].
        active_inputs_: input neurons still in the game after each epoch.
        loss_curve_: mean loss of every epoch.
        network_: the trained network.

    Raises:
        RecipeError: an argument is out of range.
        NumericalError: training diverged.

    Example:
        >>> X = np.random.default_rng(0).normal(size=(200, 20))
        >>> net = NeuroFS(2, hidden=(32,), epsilon=2, epochs=30, batch_size=10, random_state=0)
        >>> net.fit(X, X[:, 3] + X[:, 7] > 0).get_support(indices=True).tolist()
        [3, 7]
    """

    n_features_to_select: int = count(50)
    _: KW_ONLY
    hidden: tuple[int, ...] = (1000, 1000, 1000)
    epsilon: float = within(30.0, above=0)
    zeta_in: float = 0.2
    zeta_hid: float = 0.3
    remove_until: float = 0.65
    activation: Literal["tanh", "relu"] = "tanh"
    learning_rate: float = within(0.01, above=0)
    momentum: float = within(0.9, least=0, below=1)
    weight_decay: float = within(1e-5, least=0)
    batch_size: int = count(100)
    epochs: int = count(100)
    random_state: Any = None

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.input_tags.sparse = True
        return tags

    def fit(self, X: Any, y: Any) -> NeuroFS:
        """Select features of X, [examples, features] dense or sparse, for labels or numbers y, [examples]."""
        check_all(self)
        check_widths(self.hidden)
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=np.float32)
        target, outputs = _targets(y)
        self._train(X, target, outputs, seed_of(self.random_state))
        weight: Any = self.network_[0].weight
        self.strength_ = weight.detach().abs().sum(0).numpy()
        self.support_ = keep_top(torch.from_numpy(self.strength_), self._wanted(X.shape[1])).numpy()
        return self

    def _get_support_mask(self) -> Any:
        check_is_fitted(self, "support_")
        return self.support_

    # ---------------------------------------------------------------- inside

    def _wanted(self, features: int) -> int:
        if self.n_features_to_select > features:
            warnings.warn(
                f"n_features_to_select is {self.n_features_to_select}, but there are {features} features: all are kept",
                stacklevel=3,
            )
        return min(self.n_features_to_select, features)

    def _train(self, x: Rows, y: Tensor, outputs: int, seed: int) -> None:
        steps = -(-len(y) // self.batch_size) + 1
        network, densities = self._build(x.shape[1], outputs, seed)
        optimizer = self._sgd(network)
        training = SparseTraining(
            network,
            optimizer,
            allocation={name: 1 - density for name, density in densities.items()},
            method=NeuronEvolution(self.n_features_to_select, steps, self.zeta_in, self.zeta_hid, self.remove_until),
            include=list(densities),
            total_steps=steps * self.epochs,
            seed=seed,
        )
        loss = nn.functional.mse_loss if y.is_floating_point() else nn.functional.cross_entropy
        loop = Loop(network, optimizer, loss=lambda net, batch: loss(net(batch[0]), batch[1]))
        self.network_, self.loss_curve_, self.active_inputs_ = network, [], []
        for epoch in range(self.epochs):
            mean = loop.run(batches(x, y, self.batch_size, seed, epoch))
            self.loss_curve_.append(mean)
            refuse_divergence(mean, epoch + 1)
            if epoch + 1 < self.epochs:  # a step of its own, with the gradient of all examples: the evolution
                for part, wanted in _chunks(x, y):
                    (loss(network(part), wanted) * (len(part) / len(y))).backward()
                optimizer.step()
                optimizer.zero_grad()
            active = training.state_dict()["memory"].get("active")
            self.active_inputs_.append(x.shape[1] if active is None else int(active.sum()))
        training.remove()

    def _sgd(self, network: nn.Sequential) -> torch.optim.SGD:
        """Return an optimizer whose decay is the gradient of weight_decay * |w|^2, for all but the last layer."""
        *hidden, head = (module for module in network if isinstance(module, nn.Linear))
        decayed = [p for module in hidden for p in module.parameters()]
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": 2 * self.weight_decay},
            {"params": list(head.parameters())},
        ]
        return torch.optim.SGD(groups, lr=self.learning_rate, momentum=self.momentum)

    def _build(self, inputs: int, outputs: int, seed: int) -> tuple[nn.Sequential, dict[str, float]]:
        """Return the network and the density of each hidden weight.

        Values are Xavier's for the dense shapes: larger ones drown the strength that inputs gain in training.
        """
        shapes = {f"{2 * n}.weight": (out, into) for n, (into, out) in enumerate(pairwise((inputs, *self.hidden)))}
        densities = er_epsilon(shapes, self.epsilon)
        head = f"{2 * len(self.hidden)}.weight"
        modules: list[nn.Module] = []
        for name, (out, into) in {**shapes, head: (outputs, self.hidden[-1])}.items():
            bound = math.sqrt(6 / (out + into))
            layer = nn.Linear(into, out, device="meta")
            uniform = torch.rand(out, into, generator=generator(seed, "values", name))
            layer.weight = nn.Parameter(bound * (2 * uniform - 1))
            layer.bias = nn.Parameter(torch.zeros(out))
            modules += [layer, _ACTIVATIONS[self.activation]()]
        return nn.Sequential(*modules[:-1]), densities


def _chunks(x: Rows, y: Tensor, size: int = 1024) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(y), size):
        chosen = slice(start, start + size)
        yield rows(x, chosen), y[chosen]


def _targets(y: Any) -> tuple[Tensor, int]:
    """Return class numbers, int64 [examples], or standardised numbers, fp32 [examples, 1]; and how many outputs."""
    if type_of_target(y, input_name="y", raise_unknown=True) == "continuous":
        scale = y.std() or 1.0
        return torch.from_numpy((y - y.mean()) / scale).float()[:, None], 1
    classes, codes = np.unique(y, return_inverse=True)
    return torch.from_numpy(codes).long(), len(classes)
