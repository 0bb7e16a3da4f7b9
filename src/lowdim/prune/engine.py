"""Pruning the layers that share one input: mask, refinement, repair, rounding, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lowdim.core.quantize import least_scale
from lowdim.core.score import Evidence
from lowdim.core.score.base import GRADIENT
from lowdim.core.statistics import InputStatistics
from lowdim.models.structure.layers import Layer
from lowdim.prune.bench import Bench, Outcome, Work
from lowdim.prune.budgets import Budget
from lowdim.prune.recipe import Recipe
from lowdim.prune.repair.rounding import round_nearest


class Engine:
    """Prunes groups of layers as a recipe says: draw, refine, repair, round, write.

    Args:
        recipe: the methods.
        budgets: per layer name, pattern and count.
        gradients: per layer name, the gradient of the loss ``[out, in]``, for a score that needs it.

    Attributes:
        needs: kinds of `InputStatistics` to collect.
    """

    def __init__(
        self, recipe: Recipe, budgets: Mapping[str, Budget], gradients: Mapping[str, Tensor] | None = None
    ) -> None:
        self.recipe = recipe
        self.budgets = budgets
        self.gradients = gradients or {}
        self.needs = recipe.needs - {GRADIENT}

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
        if self.needs and statistics.tokens == 0:
            why = "no calibration token reached the layer; left dense"
            return [Outcome(layer.name, None, None, (why,)) for layer in layers]
        todo = [layer for layer in layers if self.recipe.grid or self.budgets[layer.name].keep < layer.master.numel()]
        bench = Bench([self._laid_out(layer, masks or {}) for layer in todo], statistics, self.recipe.grid)
        if todo:
            if self.needs:
                statistics.check(todo[0].name)
            self._process(bench)
        works = zip(todo, bench.works, strict=True)
        done = {layer.name: self._written(layer, work, statistics) for layer, work in works}
        return [done.get(layer.name) or self._untouched(layer) for layer in layers]

    def _laid_out(self, layer: Layer, masks: Mapping[str, Tensor]) -> Work:
        budget = self.budgets[layer.name]
        least = least_scale(layer.master.dtype)
        return Work(layer.name, budget.pattern, budget.keep, layer.weight(), least, masks.get(layer.name))

    @staticmethod
    def _untouched(layer: Layer) -> Outcome:
        return Outcome(layer.name, torch.ones(layer.shape, dtype=torch.bool), 0.0)

    def _process(self, bench: Bench) -> None:
        """Give every layer on the bench its mask and its new weight."""
        repair = self.recipe.repair
        repair.prepare(bench)
        if not all(self._left_to_repair(work) for work in bench.works):
            for work in bench.works:
                self._draw(work, bench.inputs)
        repair.apply(bench)
        for work in bench.works:
            if bench.grid is not None and work.codes is None:
                round_nearest(work, bench.grid, bench.energies)

    def _left_to_repair(self, work: Work) -> bool:
        """Tell whether only the repair draws the mask, as in SparseGPT."""
        recipe = self.recipe
        free = work.mask is None and not recipe.refine.wants(work.name)
        return free and recipe.score.sweep_damping is not None and recipe.repair.draws(work.pattern)

    def evidence(self, name: str, statistics: InputStatistics) -> Evidence:
        """Return what the score is told of a layer."""
        return Evidence(statistics, self.gradients.get(name))

    def _draw(self, work: Work, statistics: InputStatistics) -> None:
        """Draw the mask from the dense weight, then refine it."""
        refine = self.recipe.refine
        if work.mask is not None and not refine.wants(work.name):
            return
        scores = self.recipe.score.scores(work.dense, self.evidence(work.name, statistics))
        if work.mask is None:
            work.mask = work.pattern.mask(scores, work.keep)
        if refine.wants(work.name):
            work.mask = refine.apply(work, scores, statistics)

    def _written(self, layer: Layer, work: Work, statistics: InputStatistics) -> Outcome:
        dense = layer.weight()
        layer.write(work.made)
        error = _error(dense, layer.weight(), statistics) if self.needs else None
        return Outcome(layer.name, work.kept.cpu(), error, tuple(work.notes), work.codes, work.rounding)


def _error(dense: Tensor, sparse: Tensor, statistics: InputStatistics) -> float:
    change = sparse - dense
    if "gram" in statistics.needs:
        lost, whole = ((change @ statistics.gram) * change).sum(), ((dense @ statistics.gram) * dense).sum()
    else:
        square = statistics.square
        lost, whole = (change.square() @ square).sum(), (dense.square() @ square).sum()
    return float(lost / whole) if float(whole) > 0 else 0.0
