"""Reading documents: what is accepted, and how the rest is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lowdim.data.errors import DataError
from lowdim.data.text import Document, from_record, read


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbfOne.\n\nTwo.")
    assert read(file) == [Document(text="One.\n\nTwo.")]


def test_json_lines_hold_text_or_questions(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    rows = [{"text": "T"}, {"question": "Q", "answer": "A", "rationale": "R.", "id": 3}]
    file.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    assert read(file) == [Document(text="T"), Document(question="Q", answer="A", rationale="R.")]


def test_a_directory_is_read_in_the_order_of_paths(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("sub/z.txt", "b.md", "a.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "skip.bin").write_bytes(b"\xff")
    assert [document.text for document in read(tmp_path)] == ["a.txt", "b.md", "sub/z.txt"]


def test_the_worked_answer_of_the_paper() -> None:
    document = Document(question="1 + 1?", answer="2", rationale="One and one are two.")
    assert document.prompt == "Question: 1 + 1?\nAnswer:"
    assert document.answered() == "Question: 1 + 1?\nAnswer: 2"
    assert document.answered(rationale=True).endswith("Answer: One and one are two. So the answer is 2.")


def test_bytes_that_are_not_utf8_are_located(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(DataError, match=r"a\.txt is not UTF-8 text: byte 3 is 0xe9"):
        read(tmp_path / "a.txt")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(DataError, match=r"a\.txt is empty"):
        read(tmp_path / "a.txt")


def test_a_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("x")
    with pytest.raises(DataError, match=r"corpsu\.txt does not exist\. Did you mean 'corpus\.txt'\?"):
        read(tmp_path / "corpsu.txt")
    with pytest.raises(DataError, match="Nor does the directory"):
        read(tmp_path / "no" / "corpus.txt")
    with pytest.raises(DataError, match="Check the spelling"):
        read(tmp_path / "zzzzzzzz")


def test_a_directory_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"x")
    with pytest.raises(DataError, match=r"holds no text.*\.txt.*\.jsonl"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", r"line 2: not JSON"),
        ("[1]", "line 2: expected a JSON object; got list"),
        ('{"body": "x"}', "line 2: expected 'text', or 'question' and 'answer'; found 'body'"),
        ('{"question": "x"}', "found 'question'"),
        ('{"text": 5}', "'text' must be a string; got int"),
        ("{}", "found nothing"),
    ],
)
def test_bad_json_lines_are_located(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.jsonl")


def test_a_record_with_null_fields_is_plain_text() -> None:
    assert from_record({"text": "T", "question": None}, "row 0") == Document(text="T")
