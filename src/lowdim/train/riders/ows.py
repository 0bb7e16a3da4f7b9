"""OWS: blocks with more outliers train more often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lowdim.core.errors import RecipeError
from lowdim.core.settings import count, within
from lowdim.train.riders.sampling import Measure, Sampling

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class OWS(Sampling):
    """A block trains as often as it has outliers: p_l = D_l / sum D.

    With A = |W| * sqrt(mean x^2) of a block's linear layers, D is the share of A above m * mean(A), the statistic of
    OWL. Every ``every`` steps ``active`` blocks are drawn one after the other without replacement, with the
    probabilities of those that are left; embeddings, final norm and head always train. With GaLore as the optimizer
    it is OwLore.

    Paper: "OwLore: Outlier-weighed Layerwise Sampled Low-Rank Projection for Memory-Efficient LLM Fine-tuning", arXiv
    2405.18380 (ACL Findings 2025 as "Outlier-weighed Layerwise Sampling for LLM Fine-tuning").

    Args:
        active: blocks that train at a time.
        every: optimizer steps between two choices.
        keep_state: keep the optimizer's state of blocks that are frozen; the authors' code does.
        m: how many times the mean makes an outlier.
        order: "outliers", or "reverse": p in the order turned round, max(p) - p.

    Example:
        >>> [round(p, 2) for p in OWS(order="reverse").worths(3, lambda m: [0.5, 0.3, 0.2])]
        [0.0, 0.2, 0.3]
    """

    measures: ClassVar[bool] = True
    active: int = count(5)
    every: int = count(50)
    m: float = within(13.0, above=0)
    order: Literal["outliers", "reverse"] = "outliers"

    def worths(self, blocks: int, measure: Measure | None) -> list[float]:
        """Return what the probabilities are proportional to.

        Raises:
            RecipeError: there is no data to measure on.
        """
        if measure is None:
            raise RecipeError(
                "sampling ows goes by the outliers of every block. Give data to measure them on, or probabilities."
            )
        outliers = measure(self.m)
        if self.order == "outliers":
            return outliers
        return [max(outliers) - share for share in outliers]


def outlier_shares(model: nn.Module, data: Any, m: float = 13.0) -> list[float]:
    """Return the share of outliers of every block, between 0 and 1; see `OWS`.

    Args:
        model: in the state that training begins with; comes back unchanged.
        data: batches (inputs, targets), or mappings with "labels", one or several.
        m: how many times the mean makes an outlier.
    """
    from lowdim.core.allocation import OWL
    from lowdim.nn.blocks import find_blocks
    from lowdim.train.sparse.measured import measured

    name, blocks = find_blocks(model)
    allocation = OWL(m=m)
    found = measured(allocation, model, data, include=[f"{name}.*"])
    _, shares = allocation.measure(lambda: iter([list(block) for block in found.blocks]))
    return [shares[block] / 100.0 for block in range(len(blocks))]
