"""The evaluation inside a run: dense first, sparse last, on the same windows and questions."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from lowdim.core.errors import CheckpointError
from lowdim.data import assets
from lowdim.data.calibration import check_context, positions
from lowdim.data.windows import Windows, windows
from lowdim.evaluate.quality import perplexity as ppl
from lowdim.evaluate.quality import zeroshot
from lowdim.evaluate.quality.forward import Forward
from lowdim.evaluate.quality.perplexity import Perplexity
from lowdim.evaluate.quality.zeroshot import TaskResult
from lowdim.prune.recipe import Recipe

CONTEXT = 512
"""Tokens in a window where the recipe does not say, and the model takes as many."""
TOKENS_PER_BATCH = 1024
"""Positions in a forward of the evaluation: the logits of more would be the largest tensor of a whole run."""


@dataclass
class Measured:
    """What one model scored."""

    perplexity: Perplexity | None = None
    tasks: dict[str, TaskResult] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, with all that a paired comparison needs."""
        data: dict[str, Any] = {"tasks": {name: _task_to_dict(task) for name, task in self.tasks.items()}}
        if self.perplexity is not None:
            p = self.perplexity
            data["perplexity"] = {"value": p.value, "nll": p.nll.tolist(), "protocol": p.protocol}
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measured:
        """Rebuild from `to_dict`."""
        found = data.get("perplexity")
        value = None
        if found is not None:
            nll = torch.tensor(found["nll"], dtype=torch.float64)
            value = Perplexity(found["value"], nll, found["protocol"])
        return cls(value, {name: _task_from_dict(task) for name, task in data["tasks"].items()})


def measured_on(recipe: Recipe, text: Windows | None) -> dict[str, Any]:
    """Return what tells the text and the questions of an evaluation from others of their names."""
    settings = recipe.evaluation
    questions = zeroshot.hashes(settings.tasks, limit=settings.limit, seed=recipe.seed)
    return {"text": None if text is None else text.protocol["text"], "questions": questions}


def recorded(evaluation: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return `measured_on` of a manifest's ``evaluation``; of what it or ``asked`` does not have, what is asked."""
    text = evaluation.get("perplexity", {}).get("protocol", {}).get("text")
    tasks = evaluation.get("tasks", {})
    questions = {name: tasks.get(name, {}).get("hash", known) for name, known in asked["questions"].items()}
    return {"text": asked["text"] and (text or asked["text"]), "questions": questions}


def still_holds(found: Measured, recipe: Recipe, text: Windows | None) -> bool:
    """Tell whether an earlier attempt measured on this text and these questions, and not on other ones of one name."""
    seen = found.perplexity
    protocol = None if seen is None else {key: value for key, value in seen.protocol.items() if key != "dtype"}
    same = {name: task.hash for name, task in found.tasks.items()} == measured_on(recipe, text)["questions"]
    return same and protocol == (None if text is None else text.protocol)


_TASK = ("name", "metric", "acc", "acc_norm", "questions", "hash", "bos", "chance")


def _task_to_dict(task: TaskResult) -> dict[str, Any]:
    plain = {name: getattr(task, name) for name in _TASK}
    kept = {name: getattr(task, name).int().tolist() for name in ("correct", "correct_norm")}
    return {**plain, "stderr": None if math.isnan(task.stderr) else task.stderr, **kept}


def _task_from_dict(data: Mapping[str, Any]) -> TaskResult:
    plain = ("name", "hash", "metric", "bos", "chance")
    told: dict[str, Any] = {name: data[name] for name in plain}
    told |= {name: torch.tensor(data[name], dtype=torch.bool) for name in ("correct", "correct_norm")}
    return TaskResult(**told)


def text_of(recipe: Recipe) -> str | None:
    """Return the evaluation text that a recipe means; ``None`` for none.

    "auto" is the built-in text if calibration uses it too or it has been fetched before: measuring never
    starts a download that nobody asked for.
    """
    text = recipe.evaluation.text
    if text != "auto":
        return text
    return "builtin" if recipe.calibration.source.startswith("builtin") or assets.available()["wiki"] else None


def ready(recipe: Recipe, tokenizer: Any, config: Any) -> Windows | None:
    """Check all that a recipe measures, before any work; return its text as `make_windows` does.

    Raises:
        CheckpointError: a text or tasks are asked for, and there is no tokenizer.
        LowdimError: the text or a task is missing, malformed, or longer than the model's positions.
    """
    settings = recipe.evaluation
    if tokenizer is None:
        asked = {"tasks": ",".join(settings.tasks), "text": "" if settings.text == "auto" else settings.text}
        for name, value in asked.items():
            if value:
                raise CheckpointError(
                    f"evaluation.{name}={value} needs the model's tokenizer, and there is none. Copy the tokenizer's "
                    f"files beside the weights (in Python tokenizer= gives one), or leave evaluation.{name} out."
                )
        if text_of(recipe) is not None:
            warnings.warn("perplexity is not measured: there is no tokenizer beside the weights", stacklevel=2)
        return None
    check_tasks(recipe, tokenizer, config)
    return make_windows(recipe, tokenizer, config)


def check_tasks(recipe: Recipe, tokenizer: Any, config: Any) -> None:
    """Refuse tasks whose questions are missing, malformed or longer than the model's positions, before any work.

    Raises:
        LowdimError: names the task, and the line or the question.
    """
    settings = recipe.evaluation
    size: dict[str, Any] = {"limit": settings.limit, "seed": recipe.seed, "bos": settings.bos}
    zeroshot.check_tasks(tokenizer, settings.tasks, max_length=positions(config), **size)


def make_windows(recipe: Recipe, tokenizer: Any, config: Any) -> Windows | None:
    """Cut the evaluation text into windows; ``None`` if there is no text or no tokenizer to read it.

    Raises:
        DataError: the windows would be longer than the model's positions.
    """
    text, settings = text_of(recipe), recipe.evaluation
    if text is None or tokenizer is None:
        return None
    context = settings.context or min(CONTEXT, positions(config) or CONTEXT)
    check_context(context, config, "evaluation.context")
    return windows(text, tokenizer, context, limit=settings.windows, bos=settings.bos)


def measure(forward: Forward, recipe: Recipe, tokenizer: Any, text: Windows | None, limit: int | None) -> Measured:
    """Measure one model.

    Args:
        forward: the model.
        recipe: which tasks, how many questions.
        tokenizer: the model's.
        text: windows for perplexity.
        limit: the longest sequence that the model takes.
    """
    found = ppl.perplexity(forward, text, tokens_per_batch=TOKENS_PER_BATCH) if text is not None else None
    settings = recipe.evaluation
    tasks: dict[str, TaskResult] = {}
    if settings.tasks:
        tasks = zeroshot.evaluate_tasks(
            forward,
            tokenizer,
            settings.tasks,
            limit=settings.limit,
            seed=recipe.seed,
            max_length=limit,
            tokens_per_batch=TOKENS_PER_BATCH,
            bos=settings.bos,
        )
    return Measured(found, tasks)


def compare(dense: Measured, sparse: Measured, compute: torch.dtype | None) -> dict[str, Any]:
    """Return the manifest's ``evaluation``: both models, their paired difference, the dtype they were computed in."""
    result: dict[str, Any] = {}
    if dense.perplexity is not None and sparse.perplexity is not None:
        change = ppl.paired(dense.perplexity, sparse.perplexity)
        result["perplexity"] = {
            "protocol": dense.perplexity.protocol,
            "dense": dense.perplexity.value,
            "sparse": sparse.perplexity.value,
            "difference": _difference(change.mean, change.stderr),
        } | ({"compute": str(compute).removeprefix("torch.")} if compute else {})
    tasks = {}
    for name, task in dense.tasks.items():
        change = zeroshot.paired(task, sparse.tasks[name])
        tasks[name] = {
            "metric": task.metric,
            "dense": task.value,
            "sparse": sparse.tasks[name].value,
            "difference": change.mean,
            "stderr": None if math.isnan(change.stderr) else change.stderr,
            "questions": task.questions,
            "hash": task.hash,
            "bos": task.bos,
            "chance": task.chance,
            "lost": int((task.outcomes & ~sparse.tasks[name].outcomes).sum()),
            "won": int((~task.outcomes & sparse.tasks[name].outcomes).sum()),
        }
    return result | ({"tasks": tasks} if tasks else {})


def _difference(mean: float, stderr: float) -> dict[str, float | None]:
    return {"mean": mean, "stderr": None if math.isnan(stderr) else stderr}
