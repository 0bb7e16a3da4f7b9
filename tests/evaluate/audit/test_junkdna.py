"""The Junk-DNA audit: rank correlation by hand, and a trained model with an easy and a difficult task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.evaluate.audit.test_dropping import bits, same
from tests.evaluate.conftest import build_tokenizer
from tests.evaluate.trained import alphabet, table, trained, write_questions

from lowdim.evaluate.audit import junkdna
from lowdim.evaluate.audit.junkdna import JunkDNA, gap, junk_dna, spearman, tolerated
from lowdim.evaluate.errors import EvaluationError
from lowdim.evaluate.quality.zeroshot import TaskResult

GRID = [0.2, 0.4, 0.5, 0.6, 0.7]


@pytest.mark.parametrize(
    ("x", "y", "rho"),
    [
        ([1, 2, 3], [10, 20, 30], 1.0),
        ([1, 2, 3], [5, -1, -7], -1.0),
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], 0.8),  # 1 - 6 * 4 / (5 * 24)
        ([1, 2, 3], [1, 1000, 1001], 1.0),  # ranks alone count
        ([1, 1, 2], [1, 2, 3], 0.866025403784),  # ranks 1.5, 1.5, 3: corr = 1.5 / sqrt(1.5 * 2)
        ([1, 1, 1], [1, 2, 3], None),
        ([1.0], [2.0], None),
        ([], [], None),
    ],
)
def test_spearman_by_hand(x: list[float], y: list[float], rho: float | None) -> None:
    assert spearman(x, y) == rho


def test_spearman_needs_pairs() -> None:
    with pytest.raises(EvaluationError, match="got 2 and 1"):
        spearman([1, 2], [1])


def test_tolerance_and_gap_by_hand() -> None:
    assert tolerated([0.0, 0.1, 0.2, 0.3], [0.0, -0.02, 0.01, 0.05], 0.01) == 0.2
    assert tolerated([0.0, 0.1], [0.0, 0.5], 0.01) == 0.0
    assert gap(1.0, 0.25) == 0.0
    assert gap(0.25, 0.25) == 1.0
    assert gap(0.2, 0.25) > 1.0
    assert gap(0.75, 0.5) == 0.5


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("tasks")
    easy = write_questions(folder / "alphabet.jsonl", alphabet())
    return easy, write_questions(folder / "facts.jsonl", table())


@pytest.fixture(scope="module")
def audit(names: tuple[str, str]) -> JunkDNA:
    easy, difficult = names
    model = trained()
    before = bits(model)
    found = junk_dna(model, build_tokenizer(), [difficult, easy], difficulty={easy: 1, difficult: 7}, grid=GRID)
    assert same(bits(model), before)
    return found


def test_difficult_tasks_lose_more_once_either_loses(audit: JunkDNA) -> None:
    easy, difficult = audit.tasks
    assert (Path(easy.name).stem, easy.difficulty) == ("alphabet", 1.0)
    assert (Path(difficult.name).stem, difficult.difficulty) == ("facts", 7.0)
    assert easy.scores[0] == difficult.scores[0] == 1.0
    assert easy.above_chance
    assert all(b > a for a, b in zip(easy.drops[2:], difficult.drops[2:], strict=True))
    assert audit.spearman[2:] == [1.0] * 4
    assert difficult.monotone
    assert difficult.tolerance <= easy.tolerance
    assert difficult.drops[-1] > 0.3


def test_nothing_drops_at_zero(audit: JunkDNA) -> None:
    assert audit.grid == [0.0, *GRID]
    assert all(task.drops[0] == 0.0 for task in audit.tasks)
    assert audit.spearman[0] is None
    assert audit.dropped == [round(s * audit.weights) for s in audit.grid]


def test_drops_are_paired_differences_with_an_error(audit: JunkDNA) -> None:
    for task in audit.tasks:
        assert task.drops == pytest.approx([task.scores[0] - score for score in task.scores])
        assert task.chance == 0.25
        assert task.options == 4
        n, drop = (26, task.drops[-1]) if "alphabet" in task.name else (100, task.drops[-1])
        assert task.stderr[-1] == pytest.approx((drop * (1 - drop) / (n - 1)) ** 0.5)


def test_it_renders_and_survives_json(audit: JunkDNA) -> None:
    text = audit.table().text()
    assert text.splitlines()[1].split() == ["task", "alphabet", "facts", "Spearman"]
    assert "drop at 0.7" in text
    assert "difficulty: given" in audit.summary()
    plain = json.loads(json.dumps(audit.to_dict(), allow_nan=False))
    assert plain["spearman"][0] is None
    assert plain["tasks"][1]["drops"][0] == 0.0


def faked(monkeypatch: pytest.MonkeyPatch, accuracy: dict[str, list[float]]) -> None:
    """Answer in place of the model: accuracy per task and call, over 100 questions."""
    import torch

    calls = {name: iter(values) for name, values in accuracy.items()}

    def evaluate(model: object, tokenizer: object, names: list[str], **options: object) -> dict[str, TaskResult]:
        right = torch.arange(100) < round(100 * next(calls[names[0]]))
        return {names[0]: TaskResult(names[0], right, right, "", "acc")}

    monkeypatch.setattr(junkdna, "evaluate_tasks", evaluate)


def test_difficulty_is_the_gap_unless_told_otherwise(names: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    easy, difficult = names
    faked(monkeypatch, {easy: [0.4, 0.42, 0.1], difficult: [0.7, 0.69, 0.6]})
    found = junk_dna(trained(), None, names, grid=[0.1, 0.2])
    assert found.difficulty == "gap"
    assert [task.name for task in found.tasks] == [difficult, easy]  # what the model does worse is difficult
    assert [task.difficulty for task in found.tasks] == pytest.approx([0.4, 0.8])
    assert found.spearman == [None, -1.0, 1.0]
    assert [task.monotone for task in found.tasks] == [True, False]
    assert [task.tolerance for task in found.tasks] == [0.1, 0.1]


def test_a_task_at_chance_is_called_out(names: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    faked(monkeypatch, {names[0]: [0.3, 0.3], names[1]: [0.9, 0.3]})
    found = junk_dna(trained(), None, names, grid=[0.5])
    assert "not above chance when dense, so their drops say nothing: alphabet" in found.summary()
    assert "facts" not in found.summary()


def test_options_counts_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two, mixed = tmp_path / "two.jsonl", tmp_path / "mixed.jsonl"
    ask = {"context": "a", "label": 0}
    two.write_text(json.dumps(ask | {"choices": ["b", "c"]}) + "\n")
    rows = [ask | {"choices": list("bcd")}, ask | {"choices": list("bcdef")}]
    mixed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    faked(monkeypatch, {str(mixed): [0.9, 0.8], str(two): [0.1, 0.1]})
    found = junk_dna(trained(), None, [str(mixed), str(two)], difficulty="options", grid=[0.5])
    assert [(task.options, task.difficulty) for task in found.tasks] == [(2, 2), (4, 4)]
    assert found.tasks[1].chance == pytest.approx((1 / 3 + 1 / 5) / 2)


def test_bad_input_is_named(names: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EvaluationError, match=r"unknown difficulty 'gaps'\. Did you mean 'gap'"):
        junk_dna(trained(), None, names, difficulty="gaps")  # type: ignore[arg-type]
    with pytest.raises(EvaluationError, match=r"no difficulty was given for task .*facts"):
        junk_dna(trained(), None, names, difficulty={names[0]: 1.0})
    with pytest.raises(EvaluationError, match="needs tasks"):
        junk_dna(trained(), None, [])
    monkeypatch.setattr(junkdna.catalogue, "load", lambda name: [])
    with pytest.raises(EvaluationError, match="'options' does not apply to 'lambada'"):
        junk_dna(trained(), None, ["lambada", "piqa"], difficulty="options")
