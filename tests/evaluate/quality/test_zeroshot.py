"""Accuracy from likelihoods, sampling and paired comparison."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lowdim.data.questions import Question
from lowdim.evaluate.errors import EvaluationError
from lowdim.evaluate.quality import tasks
from lowdim.evaluate.quality.forward import of_model
from lowdim.evaluate.quality.likelihood import Likelihood
from lowdim.evaluate.quality.zeroshot import evaluate_tasks, judge, paired, sample

LETTERS = "abcdefghij"


def ask(*choices: str, label: int = 0) -> Question:
    return Question(("q",) * len(choices), tuple(f" {choice}" for choice in choices), label)


def scores(*values: float) -> list[Likelihood]:
    return [Likelihood(value, greedy=value > -1) for value in values]


@pytest.fixture
def file(tmp_path: Path) -> str:
    """Twenty questions; the answer is the next letter."""
    rows = []
    for i in range(20):
        at = i % 9
        choices = [LETTERS[at + 1], LETTERS[(at + 4) % 10]]
        rows.append({"context": f"{'ab' * (i % 3)}{LETTERS[at]}", "choices": choices, "label": 0})
    path = tmp_path / "letters.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_both_accuracies_by_hand() -> None:
    questions = [ask("no", "a longer choice", label=1), ask("x", "y", label=0)]
    result = judge(tasks.find("piqa"), questions, scores(-4.0, -9.0, -2.0, -3.0))
    assert result.correct.tolist() == [False, True]
    assert result.correct_norm.tolist() == [True, True]  # -4 / 2 < -9 / 15
    assert (result.acc, result.acc_norm, result.value, result.questions) == (0.5, 1.0, 1.0, 2)


def test_lengths_are_counted_without_the_blank() -> None:
    # with the leading blank, -2.1 / 2 > -3.3 / 3 would win
    (wins,) = judge(tasks.find("piqa"), [ask("a", "bb", label=1)], scores(-2.1, -3.3)).correct_norm.tolist()
    assert wins


def test_the_standard_error_is_that_of_a_share() -> None:
    questions = [ask("x", "y")] * 4
    result = judge(tasks.find("boolq"), questions, scores(*[-1.0, -2.0] * 3, -2.0, -1.0))
    assert result.value == 0.75
    assert result.stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 3))


def test_ties_go_to_the_first_choice() -> None:
    assert judge(tasks.find("boolq"), [ask("x", "y", label=0)], scores(-1.0, -1.0)).acc == 1


def test_lambada_is_judged_by_greedy_decoding() -> None:
    result = judge(tasks.find("lambada"), [ask("word"), ask("word")], scores(-0.5, -1.5))
    assert result.correct.tolist() == result.correct_norm.tolist() == [True, False]


def test_no_questions_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="no questions"):
        judge(tasks.find("boolq"), [], [])


def test_end_to_end(bigram: Any, tokenizer: Any, file: str) -> None:
    rows = [json.loads(line) for line in Path(file).read_text().splitlines()]
    table = torch.zeros(38, 38)
    ids = dict(zip(LETTERS, tokenizer.convert_tokens_to_ids(list(LETTERS)), strict=True))
    blank = tokenizer.convert_tokens_to_ids(" ")
    for i, letter in enumerate(LETTERS):
        table[blank, ids[letter]] = i  # later letters are likelier after a blank
    expected = [row["choices"][0] > row["choices"][1] for row in rows]
    result = evaluate_tasks(bigram(table), tokenizer, [file])[file]
    assert result.correct.tolist() == expected
    assert 0 < result.acc < 1


def test_results_do_not_depend_on_the_batch(llama: Any, tokenizer: Any, file: str) -> None:
    small = evaluate_tasks(llama, tokenizer, [file], tokens_per_batch=4)[file]
    large = evaluate_tasks(of_model(llama), tokenizer, [file], tokens_per_batch=999)[file]
    assert small.correct.tolist() == large.correct.tolist()
    assert small.hash == large.hash


def test_a_limit_draws_the_same_questions_for_every_model() -> None:
    questions = [ask(str(i), "no") for i in range(50)]
    drawn = sample(questions, 10, 0, "task")
    assert drawn == sample(questions, 10, 0, "task")
    assert drawn != sample(questions, 10, 1, "task")
    assert len(set(drawn)) == 10
    assert [questions.index(q) for q in drawn] == sorted(questions.index(q) for q in drawn)
    assert sample(questions, 99, 0, "task") == questions


def test_paired_differences(llama: Any, bigram: Any, tokenizer: Any, file: str) -> None:
    dense = evaluate_tasks(llama, tokenizer, [file])[file]
    sparse = evaluate_tasks(bigram(torch.zeros(38, 38)), tokenizer, [file])[file]
    delta = paired(dense, sparse)
    assert delta.mean == pytest.approx(sparse.acc - dense.acc)
    assert delta.stderr > 0
    assert paired(dense, dense) == paired(sparse, sparse)
    part = evaluate_tasks(llama, tokenizer, [file], limit=5)[file]
    with pytest.raises(EvaluationError, match=r"20 questions.*5.*one limit and one seed"):
        paired(dense, part)


def test_bad_arguments_are_refused_before_any_work(llama: Any, tokenizer: Any, file: str) -> None:
    with pytest.raises(EvaluationError, match="unknown task"):
        evaluate_tasks(llama, tokenizer, [file, "nope"])
    with pytest.raises(EvaluationError, match="limit must be at least 1; got 0"):
        evaluate_tasks(llama, tokenizer, [file], limit=0)


def test_contexts_are_cut_to_the_models_positions(llama: Any, tokenizer: Any, tmp_path: Path) -> None:
    row = {"context": "ab" * 99, "choices": ["c", "d"], "label": 0}
    (tmp_path / "long.jsonl").write_text(json.dumps(row))
    assert evaluate_tasks(llama, tokenizer, [str(tmp_path / "long.jsonl")])[str(tmp_path / "long.jsonl")].questions == 1
