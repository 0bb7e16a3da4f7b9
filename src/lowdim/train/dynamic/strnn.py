"""ST-RNN: drop and grow within each gate of a recurrent layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import TYPE_CHECKING, ClassVar, Literal

from lowdim.core.allocation.gates import check_rows
from lowdim.core.errors import RecipeError
from lowdim.core.lazy import torch
from lowdim.core.schedule import cosine
from lowdim.core.settings import count, share
from lowdim.core.transition import draw, drop_by_sign, drop_lowest
from lowdim.train.sparse.exchange import Regrow, initial_values
from lowdim.train.sparse.method import Periodic, written
from lowdim.train.sparse.moment import Moment

if TYPE_CHECKING:
    from lowdim.train.sparse.layer import SparseLayer


@dataclass(frozen=True)
class STRNN(Periodic):
    """Each gate of a recurrent matrix loses ceil(zeta_t * kept) of its smallest |w| and draws as many in the same gate.

    Every gate keeps its number. zeta_t = drop / 2 * (1 + cos(pi t / T)) over the whole run. Start with
    ``pattern="gates:4"`` (LSTM; GRU has 3), which gives the gates of a matrix the same number, and
    ``allocation=GateER(4)``, which counts each gate as a layer.

    Paper: "Efficient and effective training of sparse recurrent neural networks", Neural Computing and Applications
    2021, doi 10.1007/s00521-021-05727-y. It updates once per epoch; that its rate decays along half a cosine is a
    reading, after the authors' next paper (arXiv 2101.09048).

    Args:
        every: optimizer steps between updates.
        until: share of the run after which masks stand still.
        drop: zeta at the start.
        rule: "magnitude", the paper's; or "sign-share", the share zeta_t of either sign, rounded down, as `SET` drops.
        schedule: of zeta: "cosine"; or "constant", which needs no ``total_steps`` as long as ``until`` is 1.
        gates: gates stacked in the rows of every sparse weight: 4 in an LSTM, 3 in a GRU.
        regrow: value of new weights: "normal", N(0, 0.1^2); "uniform" in +-sqrt(6 / inputs); "zero".

    Example:
        >>> STRNN(every=100, gates=3).due(200, None)
        True
    """

    rests_at_last: ClassVar[bool] = True

    drop: float = share(0.3)
    rule: Literal["magnitude", "sign-share"] = "magnitude"
    schedule: Literal["cosine", "constant"] = "cosine"
    gates: int = count(4, why="LSTM 4, GRU 3")
    regrow: Regrow = "normal"

    def __repr__(self) -> str:
        return written(self, {"rule": "sign-share", "schedule": "constant"})

    @property
    def needs_total(self) -> bool:  # type: ignore[override]
        """A rate that decays knows how long a run is."""
        return self.schedule == "cosine" or self.until < 1.0

    def share(self, step: int, total: int | None) -> float:
        """Return zeta_t."""
        if self.schedule == "constant":
            return self.drop
        assert total is not None, "SparseTraining asks for total_steps where needs_total is set"
        return cosine(step, total, self.drop)

    def check(self, layers: Sequence[SparseLayer]) -> None:
        """Refuse weights whose rows are not whole gates."""
        for layer in layers:
            check_rows(layer.name, layer.shape, self.gates)
            if layer.size != prod(layer.shape):
                raise RecipeError(f"{layer.name}: gates are evolved weight by weight; use pattern='gates:{self.gates}'")

    def update(self, moment: Moment) -> None:
        """Drop and grow at random, gate by gate."""
        self.shake(moment, self.share(moment.step, moment.total))

    def shake(self, moment: Moment, fraction: float) -> None:
        """Do one update that drops ``fraction``."""
        for layer in moment.layers:
            self._evolve(moment, layer, fraction)

    def _keep(self, values: torch.Tensor, fraction: float) -> torch.Tensor:
        """Mark what stays of a gate's weights."""
        if self.rule == "sign-share":
            return drop_by_sign(values, fraction)
        return drop_lowest(values.abs(), ceil(fraction * len(values) - 1e-9))

    def _evolve(self, moment: Moment, layer: SparseLayer, fraction: float) -> None:
        positions, values = layer.positions(), layer.values()
        width = layer.size // self.gates
        generator = moment.generator(layer, "grow")
        keep = torch.ones_like(positions, dtype=torch.bool)
        grown = []
        for gate in range(self.gates):
            mine = positions // width == gate
            keep[mine] = self._keep(values[mine], fraction)
            stay = positions[mine & keep].cpu() - gate * width
            grown.append(gate * width + draw(int(mine.sum()) - len(stay), width, stay, generator))
        if not bool(keep.all()):
            new = torch.cat(grown).to(positions.device)
            layer.move(keep, new, initial_values(moment, layer, len(new), self.regrow))
