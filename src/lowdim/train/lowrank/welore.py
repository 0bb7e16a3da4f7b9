"""WeLore: layers whose spectrum has a long tail lose rank, and they alone are trained on."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lowdim.core.errors import NumericalError, RecipeError
from lowdim.core.lazy import torch
from lowdim.core.settings import share
from lowdim.train.lowrank.base import RankRule, check_keep

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class WeLore(RankRule):
    """One threshold on the normalised spectra of all layers says how many directions each one keeps.

    With the singular values s of a layer, x_i = (s_i - s_min) / (s_max - s_min); directions with x_i < k go, and k is
    such that a share ``keep`` of all directions stays, to the nearest that ties allow. A layer that loses more than
    ``least`` of its rank is an LRC, and is factorised; one that does not stays dense, for its factors would be larger.
    Then `lowdim.nn.lowrank.train_factors_` trains the LRCs alone.

    Paper: "From Low Rank Gradient Subspace Stabilization to Low-Rank Weights: Observations, Theories, and
    Applications", arXiv 2407.11239.

    Args:
        least: share of its rank that a layer must lose to be factorised; 0 factorises all that lose any.
        of_what: what the share that is kept is of: all "directions", as in the paper, or all "weights" of these layers,
            dense ones and factors; at a half of the directions square layers save no weight.

    Example:
        >>> WeLore().kept(torch.tensor([10.0, 6.0, 3.0, 2.0, 1.0]), 0.135)
        3
    """

    least: float = share(0.4999)
    of_what: Literal["directions", "weights"] = "directions"

    def ranks(self, weights: Mapping[str, Tensor], keep: float) -> dict[str, int]:
        """Return the ranks of the LRCs.

        Raises:
            NumericalError: a weight is not finite.
            RecipeError: so few weights are no layers.
        """
        check_keep(keep)
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        spectra = {name: spectrum(name, weight) for name, weight in weights.items()}
        every = torch.cat([normalised(values) for values in spectra.values()]).sort().values.tolist()
        gone = round((1.0 - keep) * len(every))
        if self.of_what == "weights":
            most = keep * sum(m * n for m, n in shapes.values())
            places = range(len(every))
            gone = bisect_left(places, -most, key=lambda d: -self.size(shapes, self._factorised(spectra, every[d])))
            if gone == len(every):
                raise RecipeError(f"keep={keep} of the weights is less than one direction in every layer. Take more.")
        return self._factorised(spectra, every[min(gone, len(every) - 1)])

    def _factorised(self, spectra: Mapping[str, Tensor], threshold: float) -> dict[str, int]:
        kept = {name: self.kept(values, threshold) for name, values in spectra.items()}
        return {name: rank for name, rank in kept.items() if 1.0 - rank / len(spectra[name]) > self.least}

    @staticmethod
    def size(shapes: Mapping[str, tuple[int, ...]], ranks: Mapping[str, int]) -> int:
        """Return the weights of layers, of which some are factorised: r (m + n), or m n.

        Example:
            >>> WeLore.size({"a": (8, 4), "b": (2, 2)}, {"a": 1})
            16
        """
        return sum(ranks[name] * (m + n) if name in ranks else m * n for name, (m, n) in shapes.items())

    def kept(self, values: Tensor, threshold: float) -> int:
        """Return how many directions of a spectrum reach a threshold; at least one."""
        return max(1, int((normalised(values) >= threshold).sum()))


def spectrum(name: str, weight: Tensor) -> Tensor:
    """Return the singular values of a weight, descending.

    Raises:
        NumericalError: it holds NaN or Inf.
    """
    if not bool(weight.isfinite().all()):
        raise NumericalError(f"{name} holds NaN or Inf: it has no spectrum")
    found: Tensor = torch.linalg.svdvals(weight.float())
    return found


def normalised(values: Tensor) -> Tensor:
    """Return a spectrum between 0 and 1; one without a slope is all ones: it has no tail.

    Example:
        >>> normalised(torch.tensor([10.0, 6.0, 3.0, 2.0, 1.0])).tolist()[1:3]
        [0.5555555820465088, 0.2222222238779068]
    """
    span = values.max() - values.min()
    return (values - values.min()) / span if float(span) > 0 else torch.ones_like(values)
