"""Erdos-Renyi over the gates of recurrent layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lowdim.core.allocation.by_shape import ByShape, Shape, spread
from lowdim.core.allocation.er import er_score
from lowdim.core.errors import RecipeError
from lowdim.core.settings import count


@dataclass(frozen=True)
class GateER(ByShape):
    """Erdos-Renyi over gates: each gate of a stacked matrix counts as a layer of its own.

    A gate of shape (out, in) has density eps * (out + in) / (out * in), none above 1; plain ER would take the
    stacked matrix for one layer of ``gates`` times the outputs.

    Args:
        gates: gates stacked in the rows of every sparse weight.

    Paper: "Efficient and effective training of sparse recurrent neural networks", Neural Computing and Applications
    2021.

    Example:
        >>> found = GateER(4).shares({"ih": (16, 4), "hh": (16, 8)}, 0.5)
        >>> {name: round(density, 4) for name, density in found.items()}
        {'ih': 0.6, 'hh': 0.45}
    """

    gates: int = count(4, why="LSTM 4, GRU 3")

    def shares(self, shapes: Mapping[str, Shape], sparsity: float) -> dict[str, float]:
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
        found = spread(gates, 1.0 - sparsity, er_score)
        return {name: found[name, 0] for name in shapes}


def check_rows(name: str, shape: Shape, gates: int) -> None:
    """Refuse a matrix whose rows are not whole gates.

    Raises:
        RecipeError: names the matrix.
    """
    if shape[0] % gates:
        raise RecipeError(
            f"{name} has {shape[0]} rows, which are not {gates} stacked gates; "
            "name the recurrent weights with include=[...], or set gates (LSTM 4, GRU 3)"
        )
