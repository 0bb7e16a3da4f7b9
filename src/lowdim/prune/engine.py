"""Pruning the layers that share one input: mask, refinement, repair, rounding, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from lowdim.core.budget import apportion
from lowdim.core.pattern import NM, Block, Pattern, Unstructured
from lowdim.core.quantize import Quantized, decode, encode, least_scale
from lowdim.core.score import OBS
from lowdim.core.statistics import InputStatistics
from lowdim.models.walk.layers import Layer
from lowdim.prune.recipe import Recipe
from lowdim.prune.refine.dsnot import DSnoT
from lowdim.prune.repair.hessian import Hessian, factor
from lowdim.prune.repair.refit import Refit
from lowdim.prune.repair.rounding import Rounding, importance
from lowdim.prune.repair.solve import refit
from lowdim.prune.repair.sparsegpt import SparseGPT
from lowdim.prune.repair.sweep import sweep


@dataclass(frozen=True)
class Budget:
    """What a layer is to keep: ``keep`` weights, laid out by ``pattern``."""

    pattern: Pattern
    keep: int


@dataclass(frozen=True)
class Outcome:
    """What became of a layer.

    Attributes:
        name: the layer.
        mask: kept entries, bool ``[out, in]``; ``None`` for a layer that was left dense.
        error: ``tr(D H D^T) / tr(W H W^T)`` with ``D`` the change of the weight: the share of the layer's output energy
            that is lost on the calibration tokens. ``H`` is ``X X^T``, or its diagonal where only that was collected;
            ``None`` without statistics.
        notes: fallbacks and other remarks.
        codes: levels and scales ``[out, in]`` of a rounded layer.
        rounding: the share of the kept weights' energy that was lost when they were rounded.
    """

    name: str
    mask: Tensor | None
    error: float | None
    notes: tuple[str, ...] = ()
    codes: Quantized | None = None
    rounding: float | None = None


@dataclass
class _Work:
    """A layer on the bench: the dense weight, its mask, and the weight to be written.

    ``unseen`` are the dense weights on inputs that are zero on every token: no error can be seen in them, so they are
    the first to be pruned, and those that the budget spares are written as they were.
    """

    layer: Layer
    budget: Budget
    dense: Tensor
    unseen: Tensor | None = None
    mask: Tensor | None = None
    result: Tensor | None = None
    notes: list[str] = field(default_factory=list)
    codes: Quantized | None = None
    rounding: float | None = None


class Engine:
    """Prunes groups of layers as a recipe says.

    Args:
        recipe: the methods.
        budgets: per layer name, pattern and count.
    """

    def __init__(self, recipe: Recipe, budgets: Mapping[str, Budget]) -> None:
        self.recipe = recipe
        self.budgets = budgets
        self.compensates = isinstance(recipe.repair, SparseGPT | Refit)
        self.needs = frozenset(recipe.score.needs)
        if self.compensates or recipe.exact_errors:
            self.needs |= {"gram"}
        if isinstance(recipe.refine, DSnoT):
            self.needs |= {"square", *recipe.refine.needs}

    @torch.no_grad()
    def prune(
        self, layers: Sequence[Layer], statistics: InputStatistics, masks: Mapping[str, Tensor] | None = None
    ) -> list[Outcome]:
        """Prune layers that share an input and write their new weights.

        Args:
            layers: the layers.
            statistics: of their input.
            masks: masks drawn elsewhere (jointly over a block), kept entries; drawn here by default.

        Raises:
            NumericalError: a weight, or the Hessian, is beyond repair; the layer is named.
        """
        todo = [
            layer
            for layer in layers
            if self.recipe.grid or self.budgets[layer.name].keep < layer.master.numel()
        ]
        if self.needs and statistics.tokens == 0:
            why = "no calibration token reached the layer; left dense"
            return [Outcome(layer.name, None, None, (why,)) for layer in layers]
        bench = [_Work(layer, self.budgets[layer.name], layer.weight()) for layer in todo]
        if bench:
            if self.needs:
                statistics.check(bench[0].layer.name)
            for work in bench:
                work.mask = None if masks is None else masks[work.layer.name]
            self._process(bench, statistics)
        done = {work.layer.name: self._finish(work, statistics) for work in bench}
        return [done.get(layer.name) or self._untouched(layer) for layer in layers]

    @staticmethod
    def _untouched(layer: Layer) -> Outcome:
        return Outcome(layer.name, torch.ones(layer.shape, dtype=torch.bool), 0.0)

    def _process(self, bench: list[_Work], statistics: InputStatistics) -> None:
        """Give every layer on the bench its mask and its new weight."""
        hessian = self._hessian(bench, statistics)
        drawn_by_sweep = hessian is not None and all(self._sweepable(work) for work in bench)
        if not drawn_by_sweep:
            for work in bench:
                self._draw(work, statistics)
        if hessian is None:
            for work in bench:
                assert work.mask is not None
                work.result = work.dense * work.mask
                self._round(work, _energies(statistics))
            return
        self._sweep(bench, hessian)
        if isinstance(self.recipe.repair, Refit):
            r = self.recipe.repair
            for work in bench:
                assert work.mask is not None and work.result is not None
                target = work.dense @ hessian.matrix
                start = work.result
                work.result = refit(target, work.mask, hessian.matrix, start, r.iterations, r.tolerance)
        if self.recipe.grid:
            self._sweep(bench, hessian, _energies(statistics))
        for work in bench:
            if work.codes is None:
                assert work.mask is not None and work.result is not None and work.unseen is not None
                work.result[:, hessian.dead] = work.unseen * work.mask[:, hessian.dead]

    def _round(self, work: _Work, energies: Tensor | None) -> None:
        """Round a layer's new weight to the nearest, if the recipe rounds."""
        grid = self.recipe.grid
        if grid is None or work.result is None:
            return
        least = least_scale(work.layer.master.dtype)
        kept = work.result != 0
        known = None if energies is None else importance(energies, work.result, kept)
        work.codes = encode(work.result, kept, grid, least, known)
        rounded = decode(work.codes.levels, work.codes.scales, grid)
        energy = work.result.double().square().sum()
        lost = (work.result - rounded).double().square().sum()
        work.rounding = float(lost / energy) if float(energy) > 0 else 0.0
        work.result = rounded

    def _hessian(self, bench: list[_Work], statistics: InputStatistics) -> Hessian | None:
        repair = self.recipe.repair
        if not isinstance(repair, SparseGPT | Refit):
            return None
        hessian = factor(statistics.gram, statistics.tokens, repair.damping, bench[0].layer.name)
        for work in bench:
            if hessian.note:
                work.notes.append(hessian.note)
            work.unseen = work.dense[:, hessian.dead]
            work.dense[:, hessian.dead] = 0.0
        return hessian

    def _sweepable(self, work: _Work) -> bool:
        """Whether the sweep itself draws the mask, from weights compensated so far, as SparseGPT does."""
        pattern = work.budget.pattern
        blockwise = isinstance(pattern, Unstructured) and pattern.group == "column-block"
        fits = blockwise or isinstance(pattern, NM | Block)
        return work.mask is None and isinstance(self.recipe.score, OBS) and fits and not self._refines(work)

    def _refines(self, work: _Work) -> bool:
        refine = self.recipe.refine
        return isinstance(refine, DSnoT) and refine.wants(work.layer.name)

    def _draw(self, work: _Work, statistics: InputStatistics) -> None:
        """Draw the mask from the dense weight, then refine it."""
        score = self.recipe.score
        scale = score.column_scale(statistics)
        scores = score.score(work.dense, scale)
        if work.mask is None:
            work.mask = work.budget.pattern.mask(scores, work.budget.keep)
        refine = self.recipe.refine
        if isinstance(refine, DSnoT) and refine.wants(work.layer.name):
            pattern = work.budget.pattern
            group = pattern.group if isinstance(pattern, NM) else 0
            work.mask = refine.refine(work.dense, work.mask, statistics, scores, group)

    def _width(self, bench: list[_Work]) -> int:
        """Return how many columns the sweep masks together."""
        repair, pattern = self.recipe.repair, bench[0].budget.pattern
        block = repair.block if isinstance(repair, SparseGPT) else Unstructured().block
        if bench[0].mask is None and isinstance(pattern, NM):
            return pattern.group
        if isinstance(pattern, Block):
            return pattern.cols * max(1, block // pattern.cols)
        return pattern.block if isinstance(pattern, Unstructured) else block

    def _sweep(self, bench: list[_Work], hessian: Hessian, energies: Tensor | None = None) -> None:
        """Sweep the layers side by side: compensate, and draw the masks that are not there yet.

        With the energies of the inputs, sweep once more and round. SparseGPT compensates for pruning and rounding
        together, from the dense weights on. Refitted weights are swept as they are: the best ones of their mask, they
        see no gain from pruned columns, and what rounding loses adds to what pruning did.
        """
        width, columns = self._width(bench), len(hessian.dead)
        edges = [0]
        for work in bench:
            edges.append(edges[-1] + len(work.dense))
        spans = list(pairwise(edges))
        quotas = [_quotas(work, columns, width) for work in bench]

        def select(start: int, end: int, weights: Tensor, diagonal: Tensor) -> Tensor:
            kept = torch.empty(weights.shape, dtype=torch.bool, device=weights.device)
            for work, (top, bottom), quota in zip(bench, spans, quotas, strict=True):
                if work.mask is not None:
                    kept[:, top:bottom] = work.mask[:, start:end].t()
                else:
                    scores = (weights[:, top:bottom] / diagonal[:, None]).square().t().contiguous()
                    kept[:, top:bottom] = _local(work.budget.pattern).mask(scores, quota[start // width]).t()
            return kept

        def side_by_side(parts: list[Tensor]) -> Tensor:
            return torch.cat(parts).t().contiguous()

        rounding, joined = None, side_by_side([work.dense for work in bench])
        if energies is not None:
            ended = side_by_side([work.result for work in bench if work.result is not None])
            rounding = self._rounding(bench, ended, hessian, energies, spans)
            joined = ended if isinstance(self.recipe.repair, Refit) else joined
        mask = sweep(joined, hessian.inverse_factor, select, width, rounding)
        for work, (top, bottom) in zip(bench, spans, strict=True):
            work.mask = mask[:, top:bottom].t().contiguous()
            work.result = joined[:, top:bottom].t().contiguous()
        for work, (codes, lost) in zip(bench, rounding.results() if rounding else (), strict=False):
            work.codes, work.rounding = codes, lost

    def _rounding(
        self,
        bench: list[_Work],
        ended: Tensor,
        hessian: Hessian,
        energies: Tensor,
        spans: list[tuple[int, int]],
    ) -> Rounding:
        assert self.recipe.grid is not None
        mask = torch.cat([work.mask for work in bench if work.mask is not None]).t()
        unseen = torch.zeros_like(ended)
        unseen[hessian.dead] = torch.cat([work.unseen for work in bench if work.unseen is not None]).t()
        least = max(least_scale(work.layer.master.dtype) for work in bench)
        return Rounding(self.recipe.grid, ended, mask, energies, unseen, spans, least)

    def _finish(self, work: _Work, statistics: InputStatistics) -> Outcome:
        assert work.mask is not None and work.result is not None
        dense = work.layer.weight()
        work.layer.write(work.result)
        error = _error(dense, work.layer.weight(), statistics) if self.needs else None
        return Outcome(work.layer.name, work.mask.cpu(), error, tuple(work.notes), work.codes, work.rounding)


def _local(pattern: Pattern) -> Pattern:
    """Return the pattern that a single column block follows."""
    return Unstructured(group="matrix") if isinstance(pattern, Unstructured) else pattern


def _quotas(work: _Work, columns: int, width: int) -> list[int]:
    """Return how many weights of a layer each range of ``width`` columns keeps."""
    sizes = [min(width, columns - start) * len(work.dense) for start in range(0, columns, width)]
    pattern = work.budget.pattern
    unit = pattern.rows * pattern.cols if isinstance(pattern, Block) else 1
    units = apportion(
        [float(size) for size in sizes], work.budget.keep // unit, [size // unit for size in sizes]
    )
    return [count * unit for count in units]


def _energies(statistics: InputStatistics) -> Tensor | None:
    """Return the sums of squares of every input, if they were collected."""
    if "gram" in statistics.needs:
        return statistics.gram.diagonal()
    return statistics.square if "square" in statistics.needs else None


def _error(dense: Tensor, sparse: Tensor, statistics: InputStatistics) -> float:
    change = sparse - dense
    if "gram" in statistics.needs:
        lost, whole = ((change @ statistics.gram) * change).sum(), ((dense @ statistics.gram) * dense).sum()
    else:
        square = statistics.square
        lost, whole = (change.square() @ square).sum(), (dense.square() @ square).sum()
    return float(lost / whole) if float(whole) > 0 else 0.0
