"""What the repairs by the inverse Hessian share: each pruned column's error is moved to the columns on its right."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from lowdim.core.errors import clash
from lowdim.core.lazy import torch
from lowdim.core.settings import within
from lowdim.prune.repair.base import Repair
from lowdim.prune.repair.hessian import Hessian, factor
from lowdim.prune.repair.rounding import Rounding
from lowdim.prune.repair.sweep import sweep

if TYPE_CHECKING:
    from torch import Tensor

    from lowdim.core.choices import Choices
    from lowdim.core.pattern import Pattern
    from lowdim.prune.bench import Bench, Work

COLUMNS = 128
"""Columns that are masked together where nothing asks for another number."""


@dataclass(frozen=True)
class Compensation(Repair, ABC):
    """Sweeps layers that share an input side by side, and rounds their weights on the way.

    Args:
        damping: share of the Hessian's mean diagonal that is added to its diagonal; above 0.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    damping: float = within(0.01, above=0, below=float("inf"), why="a share of the mean diagonal, such as 0.01")

    def draws(self, pattern: Pattern) -> bool:
        """Whether the pattern's mask can be drawn range by range."""
        return pattern.swept

    def check(self, recipe: Choices) -> None:
        """Refuse a second Hessian: a sweep that draws the mask does so from the repair's own."""
        asked = recipe.score.sweep_damping
        if asked is None or asked in (type(self).damping, self.damping):
            return
        if self.draws(recipe.legal) and not recipe.refine.moves:
            raise clash(
                f"score.damping={asked:g}",
                f"repair.damping={self.damping:g}",
                "the repair draws the mask while it compensates, from one Hessian",
                f"Choose repair.damping={asked:g} alone",
            )

    def prepare(self, bench: Bench) -> None:
        """Set aside the weights on inputs that are zero on every token.

        No error can be seen in them, so they are the first to be pruned, and those that the budget spares are written
        as they were.
        """
        dead = bench.inputs.gram.diagonal() / bench.inputs.tokens == 0
        for work in bench.works:
            work.unseen = work.dense[:, dead]
            work.dense[:, dead] = 0.0

    def apply(self, bench: Bench) -> None:
        """Compensate, improve, round, and put the unseen weights back."""
        gram, tokens = bench.inputs.gram, bench.inputs.tokens
        hessian = factor(gram, tokens, self.damping, bench.works[0].name)
        self._sweep(bench, hessian)
        self.improve(bench, hessian)
        if bench.grid is not None:
            self._sweep(bench, hessian, self._rounding(bench, hessian))
        for work in bench.works:
            work.notes += [hessian.note] if hessian.note else []
            if work.codes is None:
                assert work.unseen is not None
                work.made[:, hessian.dead] = work.unseen * work.kept[:, hessian.dead]

    def improve(self, bench: Bench, hessian: Hessian) -> None:
        """Make more of the weights that a sweep has compensated; nothing by default."""
        return

    def rounded_from(self, work: Work) -> Tensor:
        """Return the weight from which a sweep that rounds sets out: the dense one."""
        return work.dense

    def _sweep(self, bench: Bench, hessian: Hessian, rounding: Rounding | None = None) -> None:
        """Sweep once: draw the masks that are not there yet and compensate; or round what has been compensated."""
        works, columns = bench.works, len(hessian.dead)
        first = works[0]
        width = first.pattern.sweep_width(self.columns or COLUMNS, first.mask is not None)
        spans = _spans(works)
        keeps = [_keeps(work, columns, width) for work in works]

        def select(start: int, end: int, weights: Tensor, diagonal: Tensor) -> Tensor:
            kept = torch.empty(weights.shape, dtype=torch.bool, device=weights.device)
            for work, (top, bottom), keep in zip(works, spans, keeps, strict=True):
                if work.mask is not None:
                    kept[:, top:bottom] = work.mask[:, start:end].t()
                else:
                    scores = (weights[:, top:bottom] / diagonal[:, None]).square().t().contiguous()
                    kept[:, top:bottom] = work.pattern.sweep_mask(scores, keep[start // width]).t()
            return kept

        joined = _side_by_side([work.dense if rounding is None else self.rounded_from(work) for work in works])
        mask = sweep(joined, hessian.inverse_factor, select, width, rounding)
        for work, (top, bottom) in zip(works, spans, strict=True):
            work.mask = mask[:, top:bottom].t().contiguous()
            work.result = joined[:, top:bottom].t().contiguous()
        for work, (codes, lost) in zip(works, rounding.results() if rounding else (), strict=False):
            work.codes, work.rounding = codes, lost

    def _rounding(self, bench: Bench, hessian: Hessian) -> Rounding:
        assert bench.grid is not None and bench.energies is not None
        ended = _side_by_side([work.made for work in bench.works])
        mask = torch.cat([work.kept for work in bench.works]).t()
        unseen = torch.zeros_like(ended)
        unseen[hessian.dead] = torch.cat([work.unseen for work in bench.works if work.unseen is not None]).t()
        least = max(work.least for work in bench.works)
        return Rounding(bench.grid, ended, mask, bench.energies, unseen, _spans(bench.works), least)


def _side_by_side(parts: list[Tensor]) -> Tensor:
    """Return weights ``[out, in]`` as one, transposed."""
    return torch.cat(parts).t().contiguous()


def _spans(works: list[Work]) -> list[tuple[int, int]]:
    """Return the first and last row of every layer among those that are swept side by side."""
    edges = [0]
    for work in works:
        edges.append(edges[-1] + len(work.dense))
    return list(pairwise(edges))


def _keeps(work: Work, columns: int, width: int) -> list[int]:
    """Return how many weights of a layer each range of ``width`` columns keeps; none for a mask that is drawn."""
    sizes = [min(width, columns - start) * len(work.dense) for start in range(0, columns, width)]
    return [] if work.mask is not None else work.pattern.sweep_keeps(sizes, work.keep)
