"""Essential sparsity: how many of a model's weights can fall at once, untrained, before it notices."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lowdim.core.progress import Progress, Silent
from lowdim.data.tokens import Bos
from lowdim.data.windows import Windows
from lowdim.evaluate.audit import GRID
from lowdim.evaluate.audit.curve import knee, tolerance_point
from lowdim.evaluate.audit.dropping import Dropping, checked_grid
from lowdim.evaluate.present import Table, jsonable, number
from lowdim.evaluate.quality.perplexity import perplexity
from lowdim.evaluate.quality.tasks import find, load
from lowdim.evaluate.quality.zeroshot import beats, evaluate_tasks, guessing, sample


@dataclass(frozen=True)
class Metric:
    """How a model is scored along the curve.

    Attributes:
        name: for tables.
        measure: scores a model.
        higher_is_better: False for perplexity.
        logarithmic: look for the knee on the logarithm of the scores, as befits perplexity.
        protocol: what the scores depend on.
        informative: whether a score of the dense model is better than guessing.
    """

    name: str
    measure: Callable[[nn.Module], float]
    higher_is_better: bool = True
    logarithmic: bool = False
    protocol: Mapping[str, Any] = field(default_factory=dict)
    informative: Callable[[float], bool] = math.isfinite


@dataclass(frozen=True)
class Curve:
    """Scores over the grid, and where they give way."""

    scores: list[float]
    tolerance: float
    knee: float | None


@dataclass(frozen=True)
class Essential:
    """The essential-sparsity curve of a model.

    Attributes:
        metric: name of the score.
        higher_is_better: its direction.
        protocol: what it depends on.
        tau: relative loss that is tolerated.
        grid: sparsities, the first 0.
        dropped: weights that fell at each.
        weights: weights of the prunable layers.
        magnitude: the smallest weights fall.
        random: as many weights fall at random; ``None`` if that was not asked for.
        above_chance: whether the dense model beats guessing. If it does not, there is little to lose, and the curve
            says nothing.
    """

    metric: str
    higher_is_better: bool
    protocol: Mapping[str, Any]
    tau: float
    grid: list[float]
    dropped: list[int]
    weights: int
    magnitude: Curve
    random: Curve | None
    above_chance: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; None stands for what is not a finite number."""
        plain: dict[str, Any] = jsonable(asdict(self))
        return plain

    def table(self) -> Table:
        """Return the curve as a table."""
        heads = ["sparsity", "weights dropped", "magnitude", *(["random"] if self.random else [])]
        curves = [curve.scores for curve in (self.magnitude, self.random) if curve]
        rows = [
            (f"{s:g}", f"{count:,}", *(number(scores[i]) for scores in curves))
            for i, (s, count) in enumerate(zip(self.grid, self.dropped, strict=True))
        ]
        return Table(f"Essential sparsity: {self.metric} after one-shot global pruning", heads, rows)

    def summary(self) -> str:
        """Return both readings of the curve in words."""
        curves = [("magnitude", self.magnitude)] + ([("random", self.random)] if self.random else [])
        lines = [
            f"{name}: within {100 * self.tau:g}% of dense up to sparsity {curve.tolerance:g}; "
            + ("no knee" if curve.knee is None else f"knee at {curve.knee:g}")
            for name, curve in curves
        ]
        if not self.above_chance:
            lines.append(f"{self.metric} is not above chance when dense, so the curve says nothing")
        return "\n".join(lines)


def perplexity_metric(text: Windows) -> Metric:
    """Score by perplexity on windows of text; a model that guesses has as much as its tokenizer has tokens."""
    guess = text.protocol.get("tokenizer", {}).get("tokens", math.inf)

    def measure(model: nn.Module) -> float:
        return perplexity(model, text).value

    return Metric("perplexity", measure, False, True, text.protocol, lambda value: value < guess)


def task_metric(name: str, tokenizer: Any, limit: int | None = None, seed: int = 0, bos: Bos = "tokenizer") -> Metric:
    """Score by the usual accuracy of a zero-shot task, on the same questions all along the curve."""
    asked = sample(load(name), limit, seed, name)
    chance, count = guessing(name, asked), len(asked)

    def measure(model: nn.Module) -> float:
        return evaluate_tasks(model, tokenizer, [name], limit=limit, seed=seed, bos=bos)[name].value

    protocol = {"metric": find(name).metric, "limit": limit, "seed": seed, "bos": bos}
    return Metric(name, measure, protocol=protocol, informative=lambda value: beats(value, chance, count))


@torch.no_grad()
def essential_sparsity(
    model: PreTrainedModel,
    metric: Metric,
    *,
    grid: Sequence[float] = GRID,
    tau: float = 0.01,
    random: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Essential:
    """Measure the essential-sparsity curve of a model in memory; its weights are back to the bit afterwards.

    At each sparsity s the ``round(s * weights)`` smallest weights of all prunable layers together are zero, and
    nothing is trained. (The paper fine-tunes each point on the task; that belongs to training and is not done here, so
    the sparsities found are lower bounds of the paper's.) As a control, as many weights fall at random.

    Args:
        model: a Transformers model in memory.
        metric: the score, e.g. `perplexity_metric`.
        grid: sparsities in [0, 1); 0 is added.
        tau: the relative loss that is tolerated.
        random: measure the control too.
        seed: draws the control.
        progress: told of every point.

    Raises:
        EvaluationError: the grid leaves [0, 1).

    Paper: "The Emergence of Essential Sparsity in Large Pre-trained Models: The Weights that Matter", arXiv 2306.03805.
    """
    points = checked_grid(grid)
    dropping = Dropping(model)
    arms: list[int | None] = [None, seed] if random else [None]
    total = 1 + len(arms) * (len(points) - 1)
    with (progress or Silent()).stage(f"Essential sparsity, {metric.name}", total, "points") as stage:
        dense = metric.measure(model)
        stage.advance()
        found: list[Curve] = []
        for arm in arms:
            scores = [dense]
            for sparsity in points[1:]:
                with dropping.at(sparsity, arm):
                    scores.append(metric.measure(model))
                stage.advance()
            found.append(_curve(points, scores, metric, tau))
    return Essential(
        metric=metric.name,
        higher_is_better=metric.higher_is_better,
        protocol=metric.protocol,
        tau=tau,
        grid=points,
        dropped=[dropping.count(sparsity) for sparsity in points],
        weights=dropping.numel,
        magnitude=found[0],
        random=found[1] if random else None,
        above_chance=metric.informative(dense),
    )


def _curve(grid: list[float], scores: list[float], metric: Metric, tau: float) -> Curve:
    bent = [math.log(f) if f > 0 else math.nan for f in scores] if metric.logarithmic else scores
    return Curve(
        scores=scores,
        tolerance=tolerance_point(grid, scores, tau, metric.higher_is_better),
        knee=knee(grid, bent, metric.higher_is_better),
    )
