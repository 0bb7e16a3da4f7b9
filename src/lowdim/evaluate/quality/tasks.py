"""The zero-shot tasks: names, where their questions are and which accuracy their literature quotes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowdim.core.errors import suggest
from lowdim.data import questions
from lowdim.data.hard import haystack, numbers
from lowdim.data.questions import Question
from lowdim.evaluate.errors import EvaluationError


@dataclass(frozen=True)
class Task:
    """A set of questions.

    Attributes:
        name: what the user writes.
        folder: its place in the asset.
        title: for tables.
        metric: the accuracy usually quoted: "acc", or "acc_norm" which divides by the length of the choice.
        split: split of the data set.
        greedy: True where the one continuation must be what greedy decoding says (LAMBADA).
        asset: where the questions are.
        made: how choices are made for data that has none.
    """

    name: str
    folder: str
    title: str
    metric: str = "acc"
    split: str = "validation"
    greedy: bool = False
    asset: str = "tasks"
    made: Callable[[Iterable[dict[str, Any]]], Iterator[Question]] | None = None


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("hellaswag", "hellaswag/rc_0shot", "HellaSwag", "acc_norm"),
        Task("arc_easy", "arc_easy/test_rc_5shot", "ARC-Easy", split="test"),
        Task("arc_challenge", "arc_challenge/test_rc_5shot", "ARC-Challenge", "acc_norm", "test"),
        Task("boolq", "boolq/rc_0shot", "BoolQ"),
        Task("piqa", "piqa/rc_0shot", "PIQA", "acc_norm"),
        Task("winogrande", "winogrande/rc_0shot", "WinoGrande"),
        Task("openbookqa", "openbookqa/test_rc_5shot", "OpenBookQA", "acc_norm", "test"),
        Task("sciq", "sciq/rc_0shot", "SciQ"),
        Task("csqa", "csqa/rc_0shot", "CommonsenseQA", "acc_norm"),
        Task("socialiqa", "socialiqa/rc_0shot", "Social IQa", "acc_norm"),
        Task("lambada", "lambada/bpb_0shot", "LAMBADA", split="test", greedy=True),
        Task("arithmetic", "basic_skills_arithmetic/rc_5shot", "Arithmetic, 5 examples", asset="hard-tasks"),
        Task(
            "prealgebra",
            "minerva_math_prealgebra/gold_bpb_0shot",
            "MATH prealgebra, choices",
            split="test",
            asset="hard-tasks",
            made=numbers.questions,
        ),
        Task(
            "logic", "basic_skills_logical_reasoning/rc_5shot", "Syllogisms, 5 examples", "acc_norm", asset="hard-tasks"
        ),
        Task(
            "long_squad",
            "squad/bpb_5shot",
            "SQuAD among other passages",
            "acc_norm",
            asset="hard-tasks",
            made=haystack.questions,
        ),
    )
}

HARD: dict[str, tuple[str, ...]] = {
    "arithmetic": ("arithmetic", "prealgebra"),
    "multi-hop": ("logic", "openbookqa"),
    "commonsense": ("csqa", "winogrande", "socialiqa"),
    "long context": ("long_squad",),
}
"""The tasks that ``hard`` stands for, by what they ask of a model. Paper: "Sparsity May Cry" (SMC-Bench, 2023)."""
PRESETS: dict[str, tuple[str, ...]] = {"hard": tuple(name for names in HARD.values() for name in names)}
"""Words that stand for several tasks."""


def expand(names: Iterable[str]) -> tuple[str, ...]:
    """Return tasks by name, those that a preset stands for in its place, each once.

    Raises:
        EvaluationError: there is no such task.

    Example:
        >>> expand(["piqa", "hard", "csqa"])[:3]
        ('piqa', 'arithmetic', 'prealgebra')
    """
    found = tuple(dict.fromkeys(each for name in names for each in PRESETS.get(name, (name,))))
    for name in found:
        find(name)
    return found


def find(name: str) -> Task:
    """Return a task by name; the path of a file of JSON or JSON lines is a task of its own.

    Example:
        >>> find("piqa").metric
        'acc_norm'
        >>> find("mine.jsonl").title
        'mine'
    """
    if name in TASKS:
        return TASKS[name]
    if Path(name).suffix.lower() in (".jsonl", ".ndjson", ".json"):
        return Task(name, "", Path(name).stem, split="local")
    raise EvaluationError(
        f"unknown task {name!r}. {suggest(name, [*TASKS, *PRESETS])} For questions of your own give the path of a "
        ".jsonl file."
    )


def load(name: str) -> list[Question]:
    """Return the questions of a task, fetching the built-in ones on first use.

    Raises:
        EvaluationError: there is no such task, or it has no questions.
        DataError: a local file is not of the form that `lowdim.data.questions.local` reads.
    """
    task = find(name)
    if task.made is not None:
        found = list(task.made(questions.requests(task.folder, task.asset)))
    else:
        found = questions.builtin(task.folder, task.asset) if task.folder else questions.local(name)
    if not found:
        raise EvaluationError(f"task {name!r} has no questions")
    return found
