"""ST-RNN: sparse evolutionary training within each gate of a recurrent layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar

from lowdim.core.allocation.gates import check_rows
from lowdim.core.errors import RecipeError
from lowdim.core.lazy import torch
from lowdim.core.settings import count, share
from lowdim.core.transition import draw, drop_by_sign
from lowdim.train.sparse.exchange import Regrow, initial_values
from lowdim.train.sparse.method import Periodic
from lowdim.train.sparse.moment import Moment

if TYPE_CHECKING:
    from lowdim.train.sparse.layer import SparseLayer


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

    rests_at_last: ClassVar[bool] = True

    drop: float = share(0.3)
    gates: int = count(4, why="LSTM 4, GRU 3")
    regrow: Regrow = "normal"

    def check(self, layers: Sequence[SparseLayer]) -> None:
        """Refuse weights whose rows are not whole gates."""
        for layer in layers:
            check_rows(layer.name, layer.shape, self.gates)
            if layer.size != prod(layer.shape):
                raise RecipeError(f"{layer.name}: gates are evolved weight by weight; use pattern='gates:{self.gates}'")

    def update(self, moment: Moment) -> None:
        """Drop by sign and grow at random, gate by gate."""
        self.shake(moment, self.drop)

    def shake(self, moment: Moment, fraction: float) -> None:
        """Do one update that drops ``fraction``."""
        for layer in moment.layers:
            self._evolve(moment, layer, fraction)

    def _evolve(self, moment: Moment, layer: SparseLayer, fraction: float) -> None:
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
