"""The settings of a truly sparse multilayer perceptron."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from lowdim.core.allocation import counts_for
from lowdim.core.errors import RecipeError
from lowdim.core.settings import Range, Settings, count, share, within
from lowdim.train.sparse.exchange import Regrow


@dataclass(frozen=True)
class SetMLP(Settings):
    """A perceptron whose hidden layers hold nothing but epsilon * (inputs + outputs) weights each, evolved by SET.

    After every epoch but the last, each hidden layer's share ``drop`` of the weights nearest to zero, of either sign,
    makes room for as many at random places. Memory and time go with the connections: a million neurons train on a
    laptop. The output layer is dense, where the paper's is sparse. `lowdim.train.SparseMLPClassifier` and
    ``SparseMLPRegressor`` are built of it. It moves masks by the method `lowdim.train.SET`, and not inside of
    `lowdim.train.SparseTraining`, which moves them at the last step of a pass, when ``partial_fit`` cannot know whether
    another pass will train the new weights.

    Paper: "Sparse evolutionary deep learning with over one million artificial neurons on commodity hardware", Neural
    Computing and Applications 2021, arXiv 1901.09181. All-ReLU and importance pruning are of arXiv 2102.01732.

    Args:
        hidden: neurons of the hidden layers.
        epsilon: a hidden layer keeps epsilon * (inputs + outputs) weights, all of them if it has no more.
        sparsity: share of zeros over all hidden layers, spread as Erdos-Renyi; takes the place of ``epsilon``.
        drop: zeta, share of the weights of either sign that moves.
        initial: the weights at first: "scaled", uniform in +-sqrt(6 / inputs kept), 3 instead of 6 for tanh; "normal",
            N(0, 0.1^2), the paper's code.
        regrow: value of new weights: "normal", N(0, 0.1^2); "uniform" in +-sqrt(6 / inputs); "zero".
        activation: "relu"; "all-relu", whose slope below zero is -slope, +slope, -slope ... layer by layer; "tanh".
        slope: of all-relu below zero.
        dropout: share of hidden activations left out in training.
        learning_rate: of SGD.
        momentum: of SGD.
        weight_decay: how strongly weights and biases are drawn to zero.
        decay: "step", every step takes the share ``weight_decay`` off them, whatever the learning rate, as the paper's
            code does; "l2", SGD's penalty, at a learning rate of 0.01 and a momentum of 0.9 ten times weaker.
        clip: largest norm of a step's gradient, which keeps features that are not scaled from blowing it up; the paper
            has none, which is inf.
        batch_size: examples of a step; more than there are means all.
        epochs: passes over the data.
        prune_share: share of the hidden neurons of each layer, the weakest by the sum of incoming |w|, that is cut out
            at an importance pruning; 0 for none.
        prune_every: epochs between importance prunings.
        prune_after: epochs before the first.

    Example:
        >>> SetMLP(hidden=(100, 50), epsilon=2).connections(784)
        (1768, 300)
    """

    hidden: tuple[int, ...] = (1000, 1000)
    epsilon: float = within(20.0, above=0)
    sparsity: float | None = within(None, least=0, below=1)
    drop: float = share(0.3)
    initial: Literal["scaled", "normal"] = "scaled"
    regrow: Regrow = "normal"
    activation: Literal["relu", "all-relu", "tanh"] = "relu"
    slope: float = 0.6
    dropout: float = within(0.0, least=0, below=1)
    learning_rate: float = within(0.01, above=0)
    momentum: float = within(0.9, least=0, below=1)
    weight_decay: float = within(2e-4, least=0, below=1)
    decay: Literal["step", "l2"] = "step"
    clip: float = within(5.0, above=0)
    batch_size: int = count(128)
    epochs: int = count(100)
    prune_share: float = within(0.0, least=0, below=1)
    prune_every: int = count(10)
    prune_after: int = count(200, least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_widths(self.hidden)

    def connections(self, inputs: int) -> tuple[int, ...]:
        """Return how many weights each hidden layer keeps, for a number of input features."""
        widths = (inputs, *self.hidden)
        shapes = {str(n): (out, into) for n, (into, out) in enumerate(zip(widths, self.hidden, strict=False))}
        if self.sparsity is not None:
            return tuple(counts_for(shapes, "er", self.sparsity).values())
        return tuple(min(out * into, max(1, round(self.epsilon * (out + into)))) for out, into in shapes.values())


def check_widths(hidden: Iterable[object]) -> None:
    """Refuse widths that are not whole numbers of neurons."""
    if not (widths := list(hidden)) or not all(width in Range(least=1, whole=True) for width in widths):
        raise RecipeError(f"hidden must be whole numbers of neurons, such as (1000, 1000); got {hidden!r}")
