"""Gates: stacked parts of a recurrent matrix that keep the same number of weights."""

from __future__ import annotations

from dataclasses import dataclass

from lowdim.core.pattern.fan_in import EqualParts
from lowdim.core.pattern.units import whole
from lowdim.core.settings import count


@dataclass(frozen=True)
class Gates(EqualParts):
    """Single weights, of which each of the ``gates`` parts stacked in the rows keeps the same number, exactly.

    Example:
        >>> import torch
        >>> Gates(2).mask(torch.tensor([[4.0, 2.0], [1.0, 3.0], [9.0, 8.0], [7.0, 6.0]]), 4).int().tolist()
        [[1, 0], [0, 1], [1, 1], [0, 0]]
    """

    gates: int = count(4, why="LSTM 4, GRU 3")

    def __str__(self) -> str:
        return f"gates:{self.gates}"

    def parts(self, rows: int) -> int:
        """Return the number of gates."""
        return self.gates

    def check_shape(self, name: str, rows: int, cols: int) -> None:
        """Refuse rows that are not whole gates."""
        whole(name, (rows, cols), 0, self.gates, "gate")
