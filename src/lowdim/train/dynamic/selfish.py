"""Selfish-RNN: the gates of a recurrent layer compete for one budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowdim.core.errors import RecipeError
from lowdim.core.lazy import torch
from lowdim.core.settings import share
from lowdim.train.sparse.method import Regrows
from lowdim.train.sparse.moment import Moment

if TYPE_CHECKING:
    from lowdim.train.sparse.layer import SparseLayer


@dataclass(frozen=True)
class SelfishRNN(Regrows):
    """A recurrent matrix loses its smallest weights whichever gate they are in, and grows as many anywhere in it.

    The unit of competition is the stacked matrix: in torch's LSTM and GRU ``weight_ih_l0`` and ``weight_hh_l0``, whose
    rows are all gates. One gate may end up with far more weights than another; the matrix keeps its number exactly.
    At an update ceil(zeta_t * kept) weights move, with zeta_t = floor + (drop - floor) / 2 * (1 + cos(pi t / T)); new
    weights start at zero, with an optimizer state of zero.

    Paper: "Selfish Sparse RNN Training", ICML 2021, arXiv 2101.09048. It updates once per epoch, starts from
    ``allocation="uniform"`` and trains with `lowdim.train.SNTASGD`.

    Args:
        every: optimizer steps between updates; the paper's is the number of batches of an epoch.
        until: share of the run after which masks stand still; the paper moves them to the end.
        drop: zeta at the start; the paper has 0.8 for LSTM and 0.5 for recurrent highway networks.
        floor: zeta at the end.

    Example:
        >>> [round(SelfishRNN().share(t, 100), 4) for t in (0, 50, 100)]
        [0.8, 0.4025, 0.005]
    """

    drop: float = share(0.8)
    floor: float = share(0.005)

    def check(self, layers: Sequence[SparseLayer]) -> None:
        """Refuse a network without a sparse weight of torch's recurrent layers or cells."""
        if not any(isinstance(layer.module, torch.nn.RNNBase | torch.nn.RNNCellBase) for layer in layers):
            raise RecipeError(
                "SelfishRNN trains recurrent layers, and no sparse weight is of an nn.LSTM, nn.GRU, nn.RNN or one of "
                f"their cells: {', '.join(layer.name for layer in layers[:5])}. Include one, or use "
                "ITOP(grow='random'), which moves the weights of any layer"
            )
        super().check(layers)

    def shake(self, moment: Moment, fraction: float) -> None:
        """Do one update that drops ``fraction``."""
        self.regrow(moment, fraction, "magnitude", "random")
