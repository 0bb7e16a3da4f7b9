"""DSnoT: swaps pruned weights for kept ones, row by row, until the expected output error is small."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lowdim.core.errors import clash
from lowdim.core.settings import count, within
from lowdim.prune.refine.base import Refine
from lowdim.prune.refine.swap import swap

if TYPE_CHECKING:
    from torch import Tensor

    from lowdim.core.choices import Choices
    from lowdim.core.statistics import InputStatistics
    from lowdim.prune.bench import Work


@dataclass(frozen=True)
class DSnoT(Refine):
    """Swap kept and pruned weights of each row to shrink the row's expected output error; values stay.

    Args:
        max_cycles: most swaps per row; 0 returns the mask as it came.
        threshold: absolute row error at which a row is left alone. It is a sum over one sequence of the
            paper's 2048 tokens, whatever the calibration context: 0.1 means 0.1 / 2048 per token.
        power: exponent of the input variance by which a candidate's contribution is divided.
        same_sign: accept a swap only if the row error keeps its sign. N:M patterns always do.
        mlp: refine the MLP layers too; the paper refines attention alone.

    Paper: "Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse LLMs", arXiv 2310.08915.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"square", "moments"})
    group: ClassVar[str | None] = "row"

    max_cycles: int = count(50, least=0, why="the paper uses 50")
    threshold: float = within(0.1, least=0, why="the paper uses 0.1")
    power: float = within(1.0, least=0, below=float("inf"), why="the paper uses 1")
    same_sign: bool = False
    mlp: bool = False

    def check(self, recipe: Choices) -> None:
        """Refuse patterns that swaps within a row would break."""
        if recipe.pattern.swap_span is None:
            raise clash(
                "refine=dsnot",
                f"pattern={recipe.pattern}",
                "it swaps single weights within a row, which breaks whole units",
                "Choose refine=none, or an unstructured or N:M pattern",
            )
        if self.same_sign and recipe.pattern.groups_of:
            raise clash(
                "refine.same_sign=true",
                f"pattern={recipe.pattern}",
                "in an N:M pattern a row's error keeps its sign in any case",
                "Leave refine.same_sign out",
            )
        if recipe.pattern.compares == "column-block":
            raise clash(
                "refine=dsnot",
                "pattern.group=column-block",
                "it keeps the count of each row, not that of each block of columns",
                "Choose refine=none, or pattern.group=row",
            )

    def wants(self, layer: str) -> bool:
        """Whether a layer is refined: attention, told by its name, and the rest only with ``mlp``."""
        from lowdim.nn.blocks import in_attention  # which needs torch

        return self.mlp or in_attention(layer)

    def apply(self, work: Work, scores: Tensor, inputs: InputStatistics) -> Tensor:
        """Return the mask after `lowdim.prune.refine.swap.swap`.

        In an N:M pattern the scores that drew the mask order the kept weights of a group, elsewhere Wanda's score does.
        """
        group = work.pattern.swap_span or 0
        order = scores if group else work.dense.abs() * inputs.mean_square().sqrt()
        return swap(
            work.dense,
            work.kept,
            inputs.total / max(1, inputs.tokens),
            inputs.variance(),
            order,
            max_cycles=self.max_cycles,
            threshold=self.threshold,
            power=self.power,
            same_sign=self.same_sign,
            group=group,
        )
