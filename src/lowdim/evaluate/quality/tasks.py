"""The zero-shot tasks: names, where their questions are and which accuracy their literature quotes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lowdim.core.errors import suggest
from lowdim.data import questions
from lowdim.data.questions import Question
from lowdim.evaluate.errors import EvaluationError


@dataclass(frozen=True)
class Task:
    """A set of questions.

    Attributes:
        name: what the user writes.
        folder: its place in the ``tasks`` asset.
        title: for tables.
        metric: the accuracy usually quoted: "acc", or "acc_norm" which divides by the length of the choice.
        split: split of the data set.
        greedy: True where the one continuation must be what greedy decoding says (LAMBADA).
    """

    name: str
    folder: str
    title: str
    metric: str = "acc"
    split: str = "validation"
    greedy: bool = False


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
    )
}


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
        f"unknown task {name!r}. {suggest(name, TASKS)} For questions of your own give the path of a .jsonl file."
    )


def load(name: str) -> list[Question]:
    """Return the questions of a task, fetching the built-in ones on first use.

    Raises:
        EvaluationError: there is no such task, or it has no questions.
        DataError: a local file is not of the form that `lowdim.data.questions.local` reads.
    """
    task = find(name)
    found = questions.builtin(task.folder) if task.folder else questions.local(name)
    if not found:
        raise EvaluationError(f"task {name!r} has no questions")
    return found
