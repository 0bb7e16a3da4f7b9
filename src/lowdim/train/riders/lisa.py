"""LISA: a few blocks train at a time, drawn alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lowdim.core.errors import RecipeError
from lowdim.train.riders.sampling import Measure, Sampling


@dataclass(frozen=True)
class LISA(Sampling):
    """Every block is as likely as any other to train next, or likelier the deeper, or the shallower, it is.

    Every ``every`` steps ``active`` of the L blocks are drawn without replacement and train, the others are frozen;
    embeddings, final norm and head always train. Block l = 1..L has probability 1/L, or is weighed by l, or by
    L + 1 - l.

    Paper: "LISA: Layerwise Importance Sampling for Memory-Efficient Large Language Model Fine-Tuning", arXiv
    2403.17919; the other orders are rivals in arXiv 2405.18380.

    Args:
        active: blocks that train at a time.
        every: optimizer steps between two choices.
        keep_state: keep the optimizer's state of blocks that are frozen; the authors' code does.
        order: "uniform", "increase" or "decrease" with depth.

    Example:
        >>> LISA(order="decrease").worths(3, None)
        [3.0, 2.0, 1.0]
    """

    order: Literal["uniform", "increase", "decrease"] = "uniform"

    def worths(self, blocks: int, measure: Measure | None) -> list[float]:
        """Return what the probabilities are proportional to.

        Raises:
            RecipeError: there is data to measure on.
        """
        if measure is not None:
            raise RecipeError("sampling lisa looks at no data. Leave data out, or take ows.")
        up = [float(block + 1) for block in range(blocks)]
        return {"uniform": [1.0] * blocks, "increase": up, "decrease": up[::-1]}[self.order]
