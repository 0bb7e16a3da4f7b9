"""Questions: grouping of requests, local files, calibration sets."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from lowdim.data import assets, questions
from lowdim.data.errors import DataError
from lowdim.data.questions import Question
from lowdim.data.text import Document


def request(doc: int, choice: int, context: str, continuation: str, label: Any = 0, **fields: Any) -> dict[str, Any]:
    asked = {"context": context, "continuation": continuation}
    return {
        "doc_id": doc,
        "idx": choice,
        "native_id": "same",
        "label": label,
        "doc": fields,
        "request": asked,
    }


def test_unconditional_copies_go_and_equal_ids_stay_apart() -> None:
    rows = [request(d, c, f"Q{d}", f" {c}", label=d) for d in (0, 1) for c in (0, 1)]
    rows += [request(d + 1_000_000, c, "Answer:", f" {c}") for d in (0, 1) for c in (0, 1)]
    found = list(questions.from_requests(rows))
    assert found == [Question((f"Q{d}", f"Q{d}"), (" 0", " 1"), d) for d in (0, 1)]


def test_winogrande_has_one_context_a_choice() -> None:
    rows = [request(0, 1, "so Maria", " won.", 1), request(0, 0, "so Sarah", " won.", 1)]
    assert list(questions.from_requests(rows)) == [Question(("so Sarah", "so Maria"), (" won.", " won."), 1)]


def test_worked_examples_are_dropped() -> None:
    rows = [request(0, 0, "Question: x\nAnswer: y\n\nQuestion: Q\nAnswer:", " A", query="Question: Q\nAnswer:")]
    assert next(questions.from_requests(rows)).contexts == ("Question: Q\nAnswer:",)


def test_choices_lose_one_blank() -> None:
    assert Question(("a", "a"), (" x", "  y"), 0).choices == ("x", " y")


def test_local_files(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    rows = [
        {"context": "The sky is", "choices": ["red", " blue"], "label": 1},
        {"question": "Why?", "choices": ["a", "b", "c"], "label": 0},
        {"context": None, "question": "Why?", "choices": ["a", "b"], "label": 0},
        {"context": "", "choices": ["a", "b"], "label": 0},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    first, second, third, last = questions.local(file)
    assert third.contexts[0] == second.contexts[0]
    assert last.contexts == ("", "")
    assert first == Question(("The sky is",) * 2, (" red", " blue"), 1)
    assert second.contexts[0] == "Question: Why?\nAnswer:"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"choices": ["a", "b"], "label": 0}, "line 1: expected 'context' or 'question'"),
        ({"question": None, "choices": ["a", "b"], "label": 0}, "line 1: expected 'context' or 'question'"),
        ({"question": 7, "choices": ["a", "b"], "label": 0}, "line 1: expected 'context' or 'question'"),
        ({"context": "x", "choices": ["a"], "label": 0}, "at least two strings"),
        ({"context": "x", "choices": ["a", ""], "label": 0}, "at least two strings"),
        ({"context": "x", "choices": ["a", "b"], "label": 2}, "0 to 1; got 2"),
        ({"context": "x", "choices": ["a", "b"], "label": True}, "got True"),
        ({"context": "x", "choices": ["a", "b"], "label": "a"}, "got 'a'"),
    ],
)
def test_bad_local_questions_are_located(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=message):
        questions.local(tmp_path / "q.jsonl")


def test_arrays_of_questions(tmp_path: Path) -> None:
    rows = [{"context": "The sky is", "choices": ["red", "blue"], "label": 1}] * 2
    (tmp_path / "q.JSON").write_text(json.dumps(rows, indent=1))
    assert len(questions.local(tmp_path / "q.JSON")) == 2
    (tmp_path / "q.json.gz").write_bytes(b"x")
    with pytest.raises(DataError, match="no compressed files"):
        questions.local(tmp_path / "q.json.gz")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(assets, "path", lambda name: tmp_path)
    return tmp_path


def write(store: Path, folder: str, rows: list[dict[str, Any]]) -> None:
    (store / folder).mkdir(parents=True)
    with gzip.open(store / folder / "requests.jsonl.gz", "wt") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)


def test_a_calibration_set_keeps_the_right_answer(store: Path) -> None:
    rows = [request(0, c, "Question: Q?\nAnswer:", f" {c}", 1) for c in (0, 1)]
    write(store, "arc_easy/rc_0shot", rows)
    assert questions.documents("arc_easy") == [Document(question="Q?", answer="1")]


def test_gsm8k_brings_its_reasoning(store: Path) -> None:
    row = request(0, 0, "", "", question="Q?", short_answer="18", choices=["9 * 2 = 18. So the answer is 18."])
    write(store, "gsm8k/gold_bpb_5shot", [row])
    with pytest.warns(UserWarning, match="holds the test questions of GSM8K"):
        (document,) = questions.documents("gsm8k_test")
    assert document == Document(question="Q?", answer="18", rationale="9 * 2 = 18.")
    assert document.answered(rationale=True).endswith("Answer: 9 * 2 = 18. So the answer is 18.")
