"""The Junk-DNA audit: do small weights matter more for difficult tasks?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from lowdim.core.errors import suggest
from lowdim.core.progress import Progress, Silent
from lowdim.data.questions import Question
from lowdim.data.tokens import Bos
from lowdim.evaluate.audit import GRID, Difficulty
from lowdim.evaluate.audit.curve import unbroken
from lowdim.evaluate.audit.dropping import Dropping, checked_grid
from lowdim.evaluate.errors import EvaluationError
from lowdim.evaluate.present import Table, jsonable, number
from lowdim.evaluate.quality import tasks as catalogue
from lowdim.evaluate.quality.difference import difference
from lowdim.evaluate.quality.zeroshot import TaskResult, beats, evaluate_tasks, guessing, sample


@dataclass(frozen=True)
class TaskDrops:
    """One task along the grid.

    Attributes:
        name: the task.
        difficulty: its tag; only the order of the tags counts.
        options: mean number of choices; 1 where the answer is free.
        chance: accuracy of guessing.
        scores: accuracy at each sparsity.
        drops: accuracy of the dense model minus that at each sparsity.
        stderr: standard error of each drop, question by question; NaN for a single question.
        monotone: whether no drop is smaller than the one before.
        tolerance: largest sparsity up to which every drop is at most tau.
        above_chance: whether the dense model beats guessing by two standard errors. If it does not, there is little to
            lose, and the drops say nothing.
    """

    name: str
    difficulty: float
    options: float
    chance: float
    scores: list[float]
    drops: list[float]
    stderr: list[float]
    monotone: bool
    tolerance: float
    above_chance: bool


@dataclass(frozen=True)
class JunkDNA:
    """What the audit found.

    Attributes:
        difficulty: where the tags came from: "gap", "options" or "given".
        tau: drop that is tolerated, in accuracy.
        grid: sparsities, the first 0.
        dropped: weights that fell at each.
        weights: weights of the prunable layers.
        tasks: the tasks, the easiest first.
        spearman: rank correlation between difficulty and drop at each sparsity; ``None`` where either is all the same.
    """

    difficulty: str
    tau: float
    grid: list[float]
    dropped: list[int]
    weights: int
    tasks: list[TaskDrops]
    spearman: list[float | None]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; None stands for what is not a finite number."""
        plain: dict[str, Any] = jsonable(asdict(self))
        return plain

    def table(self) -> Table:
        """Return a column of drops per task, the easiest first, and their rank correlations with the difficulty."""
        rows = [
            ("difficulty", *(number(task.difficulty, 3) for task in self.tasks), ""),
            ("dense", *(number(task.scores[0]) for task in self.tasks), ""),
            *(
                (
                    f"drop at {s:g}",
                    *(number(task.drops[i]) for task in self.tasks),
                    number(self.spearman[i], 2),
                )
                for i, s in enumerate(self.grid)
                if i
            ),
            ("monotone", *("yes" if task.monotone else "no" for task in self.tasks), ""),
            ("tolerates", *(f"{task.tolerance:g}" for task in self.tasks), ""),
        ]
        heads = ("task", *(_short(task.name) for task in self.tasks), "Spearman")
        return Table("Junk DNA: accuracy lost when the smallest weights fall", heads, rows)

    def summary(self) -> str:
        """Return what the numbers cannot say."""
        lines = [f"difficulty: {self.difficulty}; tolerated drop: {self.tau:g}"]
        weak = [_short(task.name) for task in self.tasks if not task.above_chance]
        if weak:
            lines.append(f"not above chance when dense, so their drops say nothing: {', '.join(weak)}")
        return "\n".join(lines)


def _short(name: str) -> str:
    """Return a task's name, and of a file's path the part that tells."""
    task = catalogue.find(name)
    return name if task.folder else task.title


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    r"""Return Spearman's rank correlation; ``None`` if either side is all the same.

    .. math:: \rho = \operatorname{corr}(\operatorname{rank} x, \operatorname{rank} y)

    with equal values sharing the mean of their ranks.

    Example:
        >>> spearman([1, 2, 3, 4], [10, 30, 20, 40])
        0.8
        >>> spearman([1, 2], [5, 5]) is None
        True
    """
    if len(x) != len(y):
        raise EvaluationError(f"a correlation needs pairs; got {len(x)} and {len(y)} values")
    a, b = _ranks(x), _ranks(y)
    a, b = a - a.mean() if len(a) else a, b - b.mean() if len(b) else b
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return round(float(a @ b) / scale, 12) if scale else None


def _ranks(values: Sequence[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    array = np.asarray(values, dtype=np.float64)
    below = (array[:, None] > array[None, :]).sum(1)
    equal = (array[:, None] == array[None, :]).sum(1)
    ranks: np.ndarray[Any, np.dtype[np.float64]] = below + (equal + 1) / 2
    return ranks


def tolerated(grid: Sequence[float], drops: Sequence[float], tau: float) -> float:
    """Return the largest sparsity up to which every drop is at most ``tau``.

    Example:
        >>> tolerated([0.0, 0.3, 0.6], [0.0, 0.01, 0.2], 0.01)
        0.3
        >>> tolerated([0.0, 0.3, 0.6], [0.0, 0.2, 0.01], 0.01)
        0.0
    """
    return unbroken(grid, [drop <= tau + 1e-12 for drop in drops])


def gap(dense: float, chance: float) -> float:
    r"""Return how much of the way from guessing to perfection a model has not gone.

    .. math:: 1 - \frac{\text{dense} - \text{chance}}{1 - \text{chance}}

    0 is a task that the dense model has solved, 1 one where it guesses.

    Example:
        >>> gap(0.625, 0.25)
        0.5
    """
    return (1.0 - dense) / (1.0 - chance)


@torch.no_grad()
def junk_dna(
    model: PreTrainedModel,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    difficulty: Difficulty = "gap",
    grid: Sequence[float] = GRID,
    tau: float = 0.01,
    limit: int | None = None,
    seed: int = 0,
    bos: Bos = "tokenizer",
    progress: Progress | None = None,
) -> JunkDNA:
    """Drop the smallest weights of a model in memory and see which tasks suffer; afterwards every bit is back.

    One threshold on the magnitude of all prunable weights, without embeddings and head. This is the part of the paper's
    protocol that trains nothing: its four fine-tuning arms (dense transfer, sparse transfer, sparse to dense, dense
    transfer with freezing), which tell whether training recovers the loss, and quantisation as a control are not part
    of it.

    Args:
        model: a Transformers model in memory.
        tokenizer: its tokenizer.
        tasks: names of zero-shot tasks, or .jsonl files of questions.
        difficulty: how hard each task is. A mapping gives a number per task, of which the order counts. "gap" is how
            far the dense model is from solving the task, see `gap`; it depends on the model. "options" is the mean
            number of choices, which does not, but says nothing of tasks with free answers.
        grid: sparsities in [0, 1); 0 is added.
        tau: the drop that is tolerated, in accuracy.
        limit: at most so many questions a task.
        seed: which questions a limit draws.
        bos: where the start-of-text token goes.
        progress: told of every task at every sparsity.

    Raises:
        EvaluationError: unknown task, no tag for a task, a grid that leaves [0, 1).

    Paper: "Pruning Small Pre-Trained Weights Irreversibly and Monotonically Impairs 'Difficult' Downstream Tasks in
    LLMs", arXiv 2310.02277.
    """
    names = list(dict.fromkeys(tasks))
    points = checked_grid(grid)
    asked = {name: sample(catalogue.load(name), limit, seed, name) for name in names}
    _check_difficulty(difficulty, names)
    dropping = Dropping(model)
    measured: dict[str, list[TaskResult]] = {name: [] for name in names}
    size: dict[str, Any] = {"limit": limit, "seed": seed, "bos": bos}
    with (progress or Silent()).stage("Junk DNA", len(points) * len(names), "tasks") as stage:
        for sparsity in points:
            with dropping.at(sparsity):
                for name in names:
                    measured[name] += evaluate_tasks(model, tokenizer, [name], **size).values()
                    stage.advance()
    found = [_drops(points, measured[name], asked[name], difficulty, tau) for name in names]
    found.sort(key=lambda task: task.difficulty)
    tags = [task.difficulty for task in found]
    return JunkDNA(
        difficulty=difficulty if isinstance(difficulty, str) else "given",
        tau=tau,
        grid=points,
        dropped=[dropping.count(sparsity) for sparsity in points],
        weights=dropping.numel,
        tasks=found,
        spearman=[spearman(tags, [task.drops[i] for task in found]) for i in range(len(points))],
    )


def _check_difficulty(difficulty: Difficulty, names: Sequence[str]) -> None:
    if not names:
        raise EvaluationError("the audit needs tasks; name at least two, an easy and a difficult one")
    if isinstance(difficulty, str):
        if difficulty not in ("gap", "options"):
            raise EvaluationError(f"unknown difficulty {difficulty!r}. {suggest(difficulty, ['gap', 'options'])}")
        free = [name for name in names if catalogue.find(name).greedy]
        if difficulty == "options" and free:
            raise EvaluationError(
                f"difficulty 'options' does not apply to {free[0]!r}, whose answers are free. Use 'gap', or give a "
                "number for each task."
            )
    elif missing := [name for name in names if name not in difficulty]:
        raise EvaluationError(f"no difficulty was given for task {missing[0]!r}. {suggest(missing[0], difficulty)}")


def _drops(
    grid: list[float],
    results: Sequence[TaskResult],
    asked: Sequence[Question],
    difficulty: Difficulty,
    tau: float,
) -> TaskDrops:
    dense = results[0]
    chance = guessing(dense.name, asked)
    options = sum(len(question.choices) for question in asked) / len(asked)
    if isinstance(difficulty, str):
        tag = gap(dense.value, chance) if difficulty == "gap" else options
    else:
        tag = float(difficulty[dense.name])
    lost = [difference(result.outcomes, dense.outcomes) for result in results]
    drops = [change.mean for change in lost]
    return TaskDrops(
        name=dense.name,
        difficulty=tag,
        options=options,
        chance=chance,
        scores=[result.value for result in results],
        drops=drops,
        stderr=[change.stderr for change in lost],
        monotone=all(later >= earlier for earlier, later in pairwise(drops)),
        tolerance=tolerated(grid, drops, tau),
        above_chance=beats(dense.value, chance, dense.questions),
    )
