"""Zero-shot multiple choice: the choice that the model finds most likely is its answer."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lowdim.core.random import generator
from lowdim.data.calibration import positions
from lowdim.data.errors import DataError
from lowdim.data.questions import Question
from lowdim.data.tokens import Bos, pad_id
from lowdim.evaluate.errors import EvaluationError
from lowdim.evaluate.quality import tasks
from lowdim.evaluate.quality.difference import Difference, difference, standard_error
from lowdim.evaluate.quality.forward import Forward, as_forward
from lowdim.evaluate.quality.likelihood import Likelihood, of_ids, requests


@dataclass(frozen=True, eq=False)
class TaskResult:
    """Accuracy of one model on one task.

    Attributes:
        name: the task.
        correct: whether the most likely choice is right (LAMBADA: whether greedy decoding gives the last
            word), bool ``[questions]``.
        correct_norm: the same after dividing each log-likelihood by the characters of the choice.
        hash: sha256 of the questions, so that only equal ones are compared.
        metric: the accuracy usually quoted for the task, "acc" or "acc_norm".
        bos: where the start-of-text token went.
        chance: accuracy of guessing.
    """

    name: str
    correct: Tensor
    correct_norm: Tensor
    hash: str
    metric: str
    bos: Bos = "tokenizer"
    chance: float = 0.0

    @property
    def acc(self) -> float:
        """Share of questions whose most likely choice is right."""
        return float(self.correct.double().mean())

    @property
    def acc_norm(self) -> float:
        """The same after dividing each log-likelihood by the characters of the choice."""
        return float(self.correct_norm.double().mean())

    @property
    def stderr(self) -> float:
        """Standard error of `value`."""
        return standard_error(self.outcomes)

    @property
    def questions(self) -> int:
        """Number of questions."""
        return len(self.correct)

    @property
    def value(self) -> float:
        """The accuracy usually quoted: ``acc`` or ``acc_norm``."""
        return self.acc if self.metric == "acc" else self.acc_norm

    @property
    def outcomes(self) -> Tensor:
        """Per question whether it counts in `value`, bool ``[questions]``."""
        return self.correct if self.metric == "acc" else self.correct_norm


def evaluate_tasks(
    model: nn.Module | Forward,
    tokenizer: Any,
    names: Iterable[str],
    *,
    limit: int | None = None,
    seed: int = 0,
    tokens_per_batch: int = 2048,
    max_length: int | None = None,
    bos: Bos = "tokenizer",
) -> dict[str, TaskResult]:
    """Measure zero-shot accuracy.

    Args:
        model: a causal language model, or a `lowdim.evaluate.quality.forward.Forward`.
        tokenizer: its tokenizer.
        names: tasks of `lowdim.evaluate.quality.tasks.TASKS`, words that stand for several (``hard``), or paths of
            files of JSON or JSON lines.
        limit: at most so many questions a task, drawn by the seed; the same for every model.
        seed: see ``limit``.
        tokens_per_batch: positions in a forward pass, padding included.
        max_length: longest sequence; longer contexts lose their beginning. Default: the model's positions.
        bos: where the start-of-text token goes, see `lowdim.evaluate.quality.likelihood.loglikelihood`.

    Raises:
        EvaluationError: unknown task, or a limit below 1.
        DataError: a local file is malformed, or a choice is longer than ``max_length``.
    """
    forward = as_forward(model)
    length = max_length or _positions(model)
    results = {}
    for task, chosen in _asked(names, limit, seed).items():
        pairs = _encoded(task, chosen, tokenizer, length, bos)
        scores = of_ids(forward, pairs, pad_id(tokenizer), tokens_per_batch=tokens_per_batch)
        results[task.name] = replace(judge(task, chosen, scores), bos=bos)
    return results


def check_tasks(
    tokenizer: Any,
    names: Iterable[str],
    *,
    limit: int | None = None,
    seed: int = 0,
    max_length: int | None = None,
    bos: Bos = "tokenizer",
) -> int:
    """Read and encode what `evaluate_tasks` would ask, so that its errors come before any work; arguments as there.

    Returns:
        The tokens of the longest sequence that it would give a model; 0 where nothing is asked.
    """
    asked = _asked(names, limit, seed).items()
    return max(
        (len(given) for task, chosen in asked for given, _ in _encoded(task, chosen, tokenizer, max_length, bos)),
        default=0,
    )


def hashes(names: Iterable[str], *, limit: int | None = None, seed: int = 0) -> dict[str, str]:
    """Return `TaskResult.hash` of every task by name; arguments as of `evaluate_tasks`."""
    return {task.name: _hash(chosen) for task, chosen in _asked(names, limit, seed).items()}


def _hash(questions: Sequence[Question]) -> str:
    return hashlib.sha256(repr(list(questions)).encode()).hexdigest()


def _asked(names: Iterable[str], limit: int | None, seed: int) -> dict[tasks.Task, list[Question]]:
    if limit is not None and limit < 1:
        raise EvaluationError(f"limit must be at least 1; got {limit}")
    found = [tasks.find(name) for name in tasks.expand(names)]
    return {task: sample(tasks.load(task.name), limit, seed, task.name) for task in found}


def _encoded(
    task: tasks.Task, chosen: Sequence[Question], tokenizer: Any, max_length: int | None, bos: Bos
) -> list[tuple[tuple[int, ...], list[int]]]:
    found = []
    for question in chosen:
        pairs = zip(question.contexts, question.continuations, strict=True)
        try:
            found += requests(tokenizer, pairs, max_length=max_length, bos=bos)
        except DataError as error:
            where = f"task {task.name!r}, question {question.contexts[0][-60:]!r}"
            raise DataError(f"{where}: {error}. Change the question, or leave it out.") from None
    return found


def paired(dense: TaskResult, sparse: TaskResult) -> Difference:
    """Return the change of the task's usual accuracy, question by question, with its standard error.

    Raises:
        EvaluationError: the questions differ.
    """
    if dense.bos != sparse.bos:
        raise EvaluationError(f"cannot compare {dense.name} with bos={dense.bos!r} and bos={sparse.bos!r}; use one")
    if (dense.name, dense.hash) != (sparse.name, sparse.hash):
        raise EvaluationError(
            f"cannot compare {dense.name} ({dense.questions} questions) with {sparse.name} "
            f"({sparse.questions}): the questions are not the same; use one limit and one seed"
        )
    return difference(dense.outcomes, sparse.outcomes)


def sample(questions: Sequence[Question], limit: int | None, seed: int, name: str) -> list[Question]:
    """Return ``limit`` questions drawn without replacement, in their own order; all if there are fewer."""
    if limit is None or limit >= len(questions):
        return list(questions)
    drawn = torch.randperm(len(questions), generator=generator(seed, "questions", name))[:limit]
    return [questions[i] for i in sorted(drawn.tolist())]


def judge(task: tasks.Task, questions: Sequence[Question], scores: Sequence[Likelihood]) -> TaskResult:
    """Turn log-likelihoods, one per choice in the order of the questions, into a result.

    Of equally likely choices the first counts.

    Example:
        >>> q = Question(("Sky is",) * 2, (" red", " ultramarine"), label=1)
        >>> result = judge(tasks.find("piqa"), [q], [Likelihood(-3.0, True), Likelihood(-4.0, False)])
        >>> result.acc, result.acc_norm
        (0.0, 1.0)
    """
    if not questions:
        raise EvaluationError(f"task {task.name!r} has no questions")
    plain, normed, rest = [], [], iter(scores)
    for question in questions:
        mine = [next(rest) for _ in question.choices]
        values = torch.tensor([score.value for score in mine], dtype=torch.float64)
        lengths = torch.tensor([max(1, len(choice)) for choice in question.choices], dtype=torch.float64)
        plain.append(mine[0].greedy if task.greedy else int(values.argmax()) == question.label)
        normed.append(plain[-1] if task.greedy else int((values / lengths).argmax()) == question.label)
    asked, chance = _hash(questions), guessing(task.name, questions)
    return TaskResult(task.name, torch.tensor(plain), torch.tensor(normed), asked, task.metric, chance=chance)


def guessing(name: str, questions: Sequence[Question]) -> float:
    """Return the accuracy of guessing: one in so many choices, 0 where the answer is free.

    Example:
        >>> guessing("piqa", [Question(("Sky is",) * 2, (" red", " blue"), label=1)])
        0.5
    """
    return 0.0 if tasks.find(name).greedy else sum(1 / len(each.choices) for each in questions) / len(questions)


def beats(accuracy: float, chance: float, questions: int) -> bool:
    """Whether an accuracy is above that of guessing by two standard errors.

    Example:
        >>> beats(0.6, 0.5, questions=50), beats(0.6, 0.5, questions=500)
        (False, True)
    """
    return accuracy > chance + 2 * math.sqrt(accuracy * (1 - accuracy) / max(1, questions - 1))


def _positions(model: nn.Module | Forward) -> int | None:
    return positions(getattr(model, "config", None))
