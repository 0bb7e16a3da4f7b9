"""The table of tasks, and the real questions where the asset may be fetched."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lowdim.data import questions
from lowdim.evaluate.errors import EvaluationError
from lowdim.evaluate.quality import tasks

COUNTS = {
    "hellaswag": (10042, {4}),
    "arc_easy": (2376, {3, 4, 5}),
    "arc_challenge": (1172, {3, 4, 5}),
    "boolq": (3270, {2}),
    "piqa": (1838, {2}),
    "winogrande": (1267, {2}),
    "openbookqa": (500, {4}),
    "sciq": (1000, {4}),
    "csqa": (1221, {5}),
    "socialiqa": (1954, {3}),
    "lambada": (5153, {1}),
    "arithmetic": (1047, {10}),
    "prealgebra": (589, {4}),
    "logic": (1118, {4}),
    "long_squad": (1000, {4}),
}


def test_unknown_tasks_are_corrected() -> None:
    with pytest.raises(EvaluationError, match=r"unknown task 'helaswag'. Did you mean 'hellaswag'\?"):
        tasks.find("helaswag")


def test_a_file_is_a_task(tmp_path: Path) -> None:
    row = {"context": "a", "choices": ["b", "c"], "label": 0}
    (tmp_path / "mine.jsonl").write_text(json.dumps(row))
    assert len(tasks.load(str(tmp_path / "mine.jsonl"))) == 1


def test_no_task_is_asked_on_what_calibration_may_use() -> None:
    assert {task.folder for task in tasks.TASKS.values()}.isdisjoint(questions.CALIBRATION_SETS.values())


def test_naming_tasks_needs_no_torch() -> None:
    code = "import sys, lowdim.evaluate.quality.tasks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.nightly
@pytest.mark.parametrize("name", tasks.TASKS)
def test_the_real_questions(name: str) -> None:
    found = tasks.load(name)
    count, choices = COUNTS[name]
    assert len(found) == count
    assert {len(question.choices) for question in found} == choices
    assert all(context != questions.UNCONDITIONAL for question in found for context in question.contexts)
    labels = {question.label for question in found}
    assert len(labels) > 1 or name in ("sciq", "lambada")  # in SciQ the right choice is always the last
    shared = all(len(set(question.contexts)) == 1 for question in found)
    assert shared == (name != "winogrande")


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["arc_easy", "arc_challenge", "openbookqa"])
def test_calibration_questions_are_not_asked(name: str) -> None:
    asked = {question.contexts[0] for question in tasks.load(name)}
    used = [document.prompt in asked for document in questions.documents(name)]
    assert sum(used) <= 2  # the data sets' own splits share a question or two


def test_a_preset_stands_for_its_tasks_wherever_tasks_are_named() -> None:
    from lowdim.pipeline.front.settings import Settings
    from lowdim.prune.recipe import Recipe

    hard = tasks.PRESETS["hard"]
    assert set(hard) <= tasks.TASKS.keys() and len(set(hard)) == len(hard)
    assert tasks.expand(["csqa", "hard"]) == ("csqa", *(name for name in hard if name != "csqa"))
    assert Recipe(sparsity=0.5, evaluation={"tasks": "hard"}).evaluation.tasks == hard
    assert Settings("m", tasks=("hard", "piqa")).tasks == (*hard, "piqa")
    with pytest.raises(EvaluationError, match="Did you mean 'hard'"):
        tasks.expand(["hardd"])
