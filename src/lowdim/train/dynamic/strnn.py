"""ST-RNN: sparse evolutionary training within each gate of a recurrent layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar

from lowdim.core.allocation.densities import er
from lowdim.core.errors import RecipeError
from lowdim.core.settings import count, share
from lowdim.core.transition import draw, drop_by_sign
from lowdim.train.sparse.method import Moment, Order, Periodic, Regrow

if TYPE_CHECKING:
    from lowdim.train.sparse.layer import Layer


@dataclass(frozen=True)
class STRNN(Periodic):
    """Each gate of a recurrent matrix is evolved by itself, as `SET` evolves a layer.

    Of a gate's positive weights the share ``drop`` nearest to zero goes, likewise of the negative ones, and as many are
    drawn in the same gate: every gate keeps its number. Start with ``pattern="gates:4"`` (LSTM; GRU has 3), which gives
    the gates of a matrix the same number, and ``allocation=GateER(4)``, which counts each gate as a layer.

    Paper: "Efficient and effective training of sparse recurrent neural networks", Neural Computing and Applications
    2021. It updates once per epoch.

    Args:
        every: optimizer steps between updates.
        until: share of the run after which masks stand still; 1 needs no ``total_steps``.
        drop: zeta, share of the weights of either sign that goes.
        gates: gates stacked in the rows of every sparse weight: 4 in an LSTM, 3 in a GRU.
        regrow: value of new weights: "normal", N(0, 0.1^2); "uniform" in +-sqrt(6 / inputs); "zero".

    Example:
        >>> STRNN(every=100, gates=3).due(200, None)
        True
    """

    order: ClassVar[Order] = "after_step"
    rests_at_last: ClassVar[bool] = True

    drop: float = share(0.3)
    gates: int = count(4, why="LSTM 4, GRU 3")
    regrow: Regrow = "normal"

    def check(self, layers: Sequence[Layer]) -> None:
        """Refuse weights whose rows are not whole gates."""
        for layer in layers:
            check_rows(layer.name, layer.shape, self.gates)
            if layer.size != prod(layer.shape):
                raise RecipeError(
                    f"{layer.name}: gates are evolved weight by weight; use pattern='gates:{self.gates}'"
                )

    def update(self, moment: Moment) -> None:
        """Drop by sign and grow at random, gate by gate."""
        self.shake(moment, self.drop)

    def shake(self, moment: Moment, fraction: float) -> None:
        """Do one update that drops ``fraction``."""
        for layer in moment.layers:
            self._evolve(moment, layer, fraction)

    def _evolve(self, moment: Moment, layer: Layer, fraction: float) -> None:
        import torch

        from lowdim.train.sparse.exchange import initial_values

        positions, values = layer.positions(), layer.values()
        width = layer.size // self.gates
        generator = moment.generator(layer, "grow")
        keep = torch.ones_like(positions, dtype=torch.bool)
        grown = []
        for gate in range(self.gates):
            mine = positions // width == gate
            keep[mine] = drop_by_sign(values[mine], fraction)
            stay = positions[mine & keep].cpu() - gate * width
            grown.append(gate * width + draw(int(mine.sum()) - len(stay), width, stay, generator))
        if not bool(keep.all()):
            new = torch.cat(grown).to(positions.device)
            layer.move(keep, new, initial_values(moment, layer, len(new), self.regrow))


@dataclass(frozen=True)
class GateER:
    """Erdos-Renyi over gates: each gate of a stacked matrix counts as a layer of its own.

    A gate of shape (out, in) has density eps * (out + in) / (out * in), none above 1; plain ER would take the
    stacked matrix for one layer of ``gates`` times the outputs.

    Args:
        gates: gates stacked in the rows of every sparse weight.

    Example:
        >>> found = GateER(4).densities({"ih": (16, 4), "hh": (16, 8)}, 0.5)
        >>> {name: round(density, 4) for name, density in found.items()}
        {'ih': 0.6, 'hh': 0.45}
    """

    gates: int = count(4, why="LSTM 4, GRU 3")

    def __post_init__(self) -> None:
        check_gates(self.gates)

    def densities(self, shapes: Mapping[str, tuple[int, ...]], sparsity: float) -> dict[str, float]:
        """Return the share of weights that each matrix keeps, in every one of its gates.

        Raises:
            RecipeError: the rows of a matrix are not whole gates.
        """
        for name, shape in shapes.items():
            check_rows(name, shape, self.gates)
        gates = {
            (name, gate): (shape[0] // self.gates, *shape[1:])
            for name, shape in shapes.items()
            for gate in range(self.gates)
        }
        found = er(gates, sparsity)
        return {name: found[name, 0] for name in shapes}


def check_gates(gates: int) -> None:
    """Refuse a number of gates that is none.

    Raises:
        RecipeError: names the value.
    """
    if not isinstance(gates, int) or gates < 1:
        raise RecipeError(f"gates must be a whole number of at least 1 (LSTM 4, GRU 3); got {gates!r}")


def check_rows(name: str, shape: tuple[int, ...], gates: int) -> None:
    """Refuse a matrix whose rows are not whole gates.

    Raises:
        RecipeError: names the matrix.
    """
    if shape[0] % gates:
        raise RecipeError(
            f"{name} has {shape[0]} rows, which are not {gates} stacked gates; "
            "name the recurrent weights with include=[...], or set gates (LSTM 4, GRU 3)"
        )
