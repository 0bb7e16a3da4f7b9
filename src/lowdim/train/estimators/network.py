"""A truly sparse perceptron and its training, epoch by epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from math import sqrt
from typing import Any

import torch
from torch import Generator, Tensor, nn

from lowdim.core.random import generator
from lowdim.core.transition import drop_lowest, whole
from lowdim.nn.csr.linear import CSRLinear
from lowdim.train.dynamic.set import SET
from lowdim.train.estimators.data import refuse_divergence
from lowdim.train.estimators.setmlp import SetMLP
from lowdim.train.loop import Loop
from lowdim.train.sparse.csr import CSRLayer
from lowdim.train.sparse.layer import SparseLayer
from lowdim.train.sparse.moment import Moment

Loss = Callable[[Tensor, Tensor], Tensor]


class SparseMLP(nn.Module):
    """Hidden layers of kept weights alone, then a dense output layer."""

    def __init__(self, settings: SetMLP, inputs: int, outputs: int, seed: int) -> None:
        super().__init__()
        self.settings = settings
        kept = settings.connections(inputs)
        shapes = pairwise((inputs, *settings.hidden))
        self.layers = nn.ModuleList(
            CSRLinear.random(into, out, count, seed=seed, name=f"layers.{n}")
            for n, ((into, out), count) in enumerate(zip(shapes, kept, strict=True))
        )
        gain = sqrt(3.0 if settings.activation == "tanh" else 6.0)  # Xavier's, He's: uniform, by the inputs kept
        with torch.no_grad():
            for number, layer in enumerate(self.sparse):
                layer.values.mul_(gain)
                if settings.initial == "normal":
                    layer.values.normal_(0.0, 0.1, generator=generator(seed, "normal", f"layers.{number}"))
                bias_of(layer).zero_()
        width = settings.hidden[-1]
        weight = torch.rand(outputs, width, generator=generator(seed, "values", "head"))
        self.head = nn.Linear(width, outputs, device="meta")
        self.head.weight = nn.Parameter((2 * weight - 1) / sqrt(width))
        self.head.bias = nn.Parameter(torch.zeros(outputs))

    @property
    def sparse(self) -> list[CSRLinear]:
        """The hidden layers."""
        return list(self.layers)  # type: ignore[arg-type]

    def activate(self, layer: int, z: Tensor) -> Tensor:
        """Apply the activation of a hidden layer."""
        if self.settings.activation == "tanh":
            return z.tanh()
        if self.settings.activation == "relu":
            return z.relu()
        slope = -self.settings.slope if layer % 2 == 0 else self.settings.slope
        return torch.where(z < 0, slope * z, z)

    def forward(self, x: Tensor, source: Generator | None = None) -> Tensor:
        """Map fp32 [batch, inputs] to [batch, outputs]; with a source of randomness, hidden activations drop out."""
        share = self.settings.dropout
        for number, layer in enumerate(self.layers):
            x = self.activate(number, layer(x))
            if share and source is not None:
                x = x * torch.empty_like(x).bernoulli_(1 - share, generator=source) / (1 - share)
        output: Tensor = self.head(x)
        return output


class DecayingSGD(torch.optim.SGD):
    """SGD before each of whose steps weights lose the share ``decay`` of their group, whatever the learning rate."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(1.0 - group.get("decay", 0.0))
        return super().step(closure)


class Run:
    """A network in training: what `fit` goes through and `partial_fit` takes up again."""

    def __init__(self, settings: SetMLP, inputs: int, outputs: int, seed: int, every: int) -> None:
        self.settings, self.seed, self.every = settings, seed, every
        self.network = SparseMLP(settings, inputs, outputs, seed)
        self.epochs = self.steps = self.since = 0
        self.optimizer = self._sgd()

    def _sgd(self) -> torch.optim.SGD:
        s = self.settings
        decay = {"decay": s.weight_decay} if s.decay == "step" else {"weight_decay": s.weight_decay}
        group = {"params": list(self.network.parameters())} | decay
        return DecayingSGD([group], lr=s.learning_rate, momentum=s.momentum)

    def epoch(self, batches: Iterable[tuple[Tensor, Tensor]], loss: Loss) -> float:
        """Evolve if it is time, then train once through the batches; returns the mean loss of an example.

        Evolving first, not last, gives new weights a pass before the network is used.

        Raises:
            NumericalError: the loss is no longer finite.
        """
        if self.since >= self.every:
            if self._prunes():
                self.prune(self.settings.prune_share)
            self.evolve()
        source = generator(self.seed, "dropout", self.epochs)
        loop = Loop(
            self.network,
            self.optimizer,
            loss=lambda network, batch: loss(network(batch[0], source), batch[1]),
            clip=self.settings.clip,
        )
        mean = loop.run(batches)
        self.epochs, self.steps, self.since = self.epochs + 1, self.steps + loop.step, self.since + loop.step
        refuse_divergence(mean, self.epochs)
        return mean

    # ---------------------------------------------------------------- evolution

    def evolve(self) -> None:
        """Move the connections of the hidden layers by SET.

        Not with `SparseTraining`, for the reason that `SetMLP` gives.
        """
        layers: list[SparseLayer] = [
            CSRLayer(f"layers.{n}", layer, self.optimizer) for n, layer in enumerate(self.network.sparse)
        ]
        method = SET(every=1, drop=self.settings.drop, regrow=self.settings.regrow)
        method.update(Moment(self.steps, None, layers, {}, {}, self.seed))
        self.since = 0

    def _prunes(self) -> bool:
        s = self.settings
        return s.prune_share > 0 and self.epochs > s.prune_after and self.epochs % s.prune_every == 0

    @torch.no_grad()
    def prune(self, share: float) -> None:
        """Cut out of every hidden layer this share of its neurons, the weakest by the sum of incoming |w|.

        The output of a neuron without inputs is a constant; it goes into the biases of the next layer. So the network
        computes what it would compute if the neurons' incoming weights were zero.
        """
        network, state = self.network, self._momentum()
        layers = network.sparse
        keeps = [drop_lowest(strength(layer), whole(share * layer.out_features)) for layer in layers]
        constants = [
            network.activate(number, bias_of(layer)).masked_fill(keep, 0.0)
            for number, (layer, keep) in enumerate(zip(layers, keeps, strict=True))
        ]
        following: list[CSRLinear | nn.Linear] = [*layers[1:], network.head]
        for constant, layer in zip(constants, following, strict=True):
            bias_of(layer).copy_(layer(constant[None])[0])
        inputs = [torch.ones(layers[0].in_features, dtype=torch.bool), *keeps]
        for number, (each, rows, columns) in enumerate(zip(layers, keeps, inputs, strict=False)):
            network.layers[number] = _cut(each, rows, columns, state)
        old = network.head.weight
        network.head.weight = nn.Parameter(old[:, keeps[-1]].clone())
        state[network.head.weight] = state[old][:, keeps[-1]].clone()
        network.head.in_features = int(keeps[-1].sum())
        self.optimizer = self._sgd()
        for parameter in network.parameters():
            self.optimizer.state[parameter]["momentum_buffer"] = state[parameter]

    def _momentum(self) -> dict[Tensor, Tensor]:
        held = self.optimizer.state
        buffers = {p: held.get(p, {}).get("momentum_buffer") for p in self.network.parameters()}
        return {p: torch.zeros_like(p) if b is None else b for p, b in buffers.items()}


def bias_of(layer: CSRLinear | nn.Linear) -> nn.Parameter:
    """Return the bias, which every layer here has."""
    assert layer.bias is not None
    return layer.bias


def strength(layer: CSRLinear) -> Tensor:
    """Return the sum of the incoming |w| of every neuron, fp32 [outputs]."""
    rows = layer.positions() // layer.in_features
    return torch.zeros(layer.out_features).index_add_(0, rows, layer.values.detach().abs())


def _cut(layer: CSRLinear, rows: Tensor, columns: Tensor, state: dict[Tensor, Tensor]) -> CSRLinear:
    """Return the layer without the rows and columns that are False, and enter its momentum into ``state``."""
    row, column = layer.positions() // layer.in_features, layer.positions() % layer.in_features
    stay = rows[row] & columns[column]
    new_row, new_column = (side.cumsum(0) - 1 for side in (rows, columns))
    width = int(columns.sum())
    positions = new_row[row[stay]] * width + new_column[column[stay]]
    offset = bias_of(layer)
    made = CSRLinear(width, int(rows.sum()), positions, layer.values.detach()[stay], offset[rows])
    state[made.values] = state[layer.values][stay]
    state[bias_of(made)] = state[offset][rows]
    return made
