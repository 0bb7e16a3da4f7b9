"""Reading documents: what is accepted, and how the rest is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lowdim.data.errors import DataError
from lowdim.data.text import Document, from_record, read, stream


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


@pytest.mark.parametrize("name", [".git/a.txt", ".ipynb_checkpoints/a.jsonl", "._a.txt", "b/.c.md"])
def test_what_is_hidden_in_a_directory_is_passed_over(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.txt").write_text("so be it")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"\0\5\xff")
    assert [document.text for document in read(tmp_path)] == ["so be it"]
    assert [document.text for document in stream(tmp_path)] == ["so be it"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_of_every_system_read_alike(tmp_path: Path, end: str) -> None:
    (tmp_path / "a.txt").write_bytes(f"so{end}{end}be it{end}".encode())
    (tmp_path / "a.jsonl").write_bytes(f'{{"text": "so"}}{end}{{"text": "be it"}}{end}'.encode())
    assert [document.text for document in read(tmp_path / "a.txt")] == ["so\n\nbe it\n"]
    assert [document.text for document in stream(tmp_path / "a.txt")] == ["so\n\nbe it\n"]
    assert [document.text for document in stream(tmp_path / "a.txt", "\n\n")] == ["so", "be it\n"]
    assert [document.text for document in read(tmp_path / "a.jsonl")] == ["so", "be it"]


def test_the_worked_answer_of_the_paper() -> None:
    document = Document(question="1 + 1?", answer="2", rationale="One and one are two.")
    assert document.prompt == "Question: 1 + 1?\nAnswer:"
    assert document.answered() == "Question: 1 + 1?\nAnswer: 2"
    assert document.answered(rationale=True).endswith("Answer: One and one are two. So the answer is 2.")


def test_bytes_that_are_not_utf8_are_located(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(DataError, match=r"a\.txt is not UTF-8 text: byte 3 is 0xe9"):
        read(tmp_path / "a.txt")


@pytest.mark.parametrize("separator", [None, "##"])
def test_a_file_with_zeros_is_no_text(separator: str | None, tmp_path: Path) -> None:
    """UTF-16 of plain letters is UTF-8 as well, without a mark."""
    (tmp_path / "a.txt").write_bytes(("so be it " * 9).encode("utf-16-le"))
    with pytest.raises(DataError, match=r"a\.txt is no text: its character 1 is a zero.*iconv -f UTF-16"):
        list(stream(tmp_path / "a.txt", separator))


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


RECORDS = [{"text": "One."}, {"text": "Two."}]
DOCUMENTS = [Document(text="One."), Document(text="Two.")]
LINES = "\n".join(map(json.dumps, RECORDS))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps(RECORDS)),
        ("a.json", json.dumps(RECORDS, indent=2)),
        ("a.json", LINES),
        ("a.JSON", json.dumps(RECORDS)),
        ("a.jsonl", json.dumps(RECORDS, indent=1)),
        ("a.JSONL", LINES),
        ("a.NdJson", "\n\n" + LINES + "\n"),
        ("a.txt", LINES),
        ("a.TXT", json.dumps(RECORDS)),
        ("a.md", json.dumps(RECORDS, indent=4)),
        ("a", LINES),
        ("a.data", json.dumps(RECORDS)),
        ("a.part-0001", LINES),
    ],
)
def test_records_are_records_under_any_name(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert read(tmp_path / name) == DOCUMENTS


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.TXT", "One."),
        ("a.log", "[1] of two\n{braces} and [brackets]"),
        ("a.tex", r"{\em One}"),
        ("a.py", "{1: 2}"),
        ("a.md", "[a link](to)\n[1]"),
        ("a", '"quoted"'),
        ("a.txt", "17"),
        ("a.txt", "17\n18\n"),
        ("a.txt", '"Who is there?"\n"Nobody," said the door.'),
        ("a.txt", "Chapter\n17\n[1]\n"),
        ("a.txt", "[1] [2] are cited"),
        ("a.txt", "[1]\n[2]\nand so on"),
        ("a.log", "{}{} and no more"),
    ],
)
def test_what_is_no_record_is_prose(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert read(tmp_path / name) == [Document(text=content)]
    assert list(stream(tmp_path / name, "|")) == [Document(text=content)]


ONE, OTHER = json.dumps({"text": "One."}, indent=2), json.dumps({"text": "Two.", "n": [1]}, indent=1)


@pytest.mark.parametrize(
    ("name", "content", "way_out"),
    [
        ("a.txt", '["One.", 1]\n["Two.", 2]\n', "on each line"),
        ("a", '"One."\n\n"Two."', "on each line"),
        ("a.log", '["One."]\n"Two."\n{"text": "Three."}', "on each line"),
        ("a.md", "\n  []\n  [[]]\n", "on each line"),
        ("a.txt", f"{ONE}\n{OTHER}\n", "jq -c"),
        ("a.data", f"{ONE}{OTHER}{ONE}", "jq -c"),
        ("a.md", f"[\n1\n]\n\n{ONE}", "jq -c"),
        ("a.part-0001", '{"text": "One."} {"text": "Two."}', "jq -c"),
    ],
)
def test_json_of_other_forms_is_refused_by_name(tmp_path: Path, name: str, content: str, way_out: str) -> None:
    (tmp_path / name).write_text(content)
    for found in (lambda: read(tmp_path / name), lambda: list(stream(tmp_path / name, "\n\n"))):
        with pytest.raises(DataError) as caught:
            found()
        assert str(caught.value).startswith(f"{tmp_path / name} is JSON and no prose")
        assert way_out in str(caught.value)


def test_a_large_text_in_quotes_is_judged_by_its_beginning(tmp_path: Path) -> None:
    file, line = tmp_path / "a.txt", json.dumps("word " * 99)
    file.write_text("\n".join([line] * 2500))
    with pytest.raises(DataError, match="on each line"):
        next(stream(file, "|"))
    file.write_text("\n".join([line, "and not", *[line] * 2500]))
    assert "".join(document.text for document in stream(file, "|")) == file.read_text()


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a.csv", ["a.csv", "no tables", "JSON lines"]),
        ("a.TSV", ["a.TSV", "no tables", "load_dataset"]),
        ("a.parquet", ["no tables"]),
        ("a.xlsx", ["no tables"]),
        ("a.txt.gz", ["a.txt.gz", "no compressed files", "Unpack it first"]),
        ("a.jsonl.ZST", ["no compressed files"]),
        ("a.zip", ["no compressed files"]),
        ("a.npy", ["no pickles", ".safetensors"]),
        ("a.html", ["no markup", ".txt"]),
        ("a.PDF", ["no markup"]),
    ],
)
def test_formats_of_data_are_refused_by_name(tmp_path: Path, name: str, parts: list[str]) -> None:
    (tmp_path / name).write_bytes(b"id,text\n1,One.\n")
    with pytest.raises(DataError) as caught:
        read(tmp_path / name)
    assert [part for part in parts if part not in str(caught.value)] == []


def test_a_directory_tells_what_it_passes_over(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("text\nOne.\n")
    with pytest.raises(DataError, match=r"b\.csv: lowdim reads no tables"):
        read(tmp_path)
    (tmp_path / "a.JSONL").write_text(LINES)
    (tmp_path / "c.parquet").write_bytes(b"PAR1")
    with pytest.warns(UserWarning, match=r"b\.csv and 1 more files passed over: lowdim reads no tables"):
        assert read(tmp_path) == DOCUMENTS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"text": "a"}, 5]', "item 2: expected a JSON object; got int"),
        ('[{"text": "a"}, {"body": "b"}]', "item 2: expected 'text'"),
        ('[{"text": "a"},\n{"text": ]', "line 2: not JSON"),
        ('{"data": [{"text": "a"}]}', "found 'data'"),
        ('{"text": "a"}\n{"text": ', "line 2: not JSON"),
        ("[" * 100_000, "line 1: not JSON"),
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_bad_json_is_located(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


@pytest.mark.parametrize(
    "content", ['[{"text": "a"}, null]', '{"text": "a"}\nnull\n', '{"text": "a"}\n\n{"text": null}']
)
def test_null_records_are_blank(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    assert [document.blank for document in read(tmp_path / "a.json")] == [False, True]


def test_chats_come_in_both_spellings() -> None:
    openai = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]}
    sharegpt = {"id": 1, "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes?"}]}
    mixed = {"conversations": openai["messages"]}
    chatgpt = {"conversations": [{"from": "user", "value": "Hi"}, {"from": "chatgpt", "value": "Yes?"}]}
    first, *others = (from_record(record, "row 0") for record in (openai, sharegpt, mixed, chatgpt))
    assert first.chat
    assert others == [first] * 3
    assert not from_record(openai | {"text": "written out"}, "row 0").chat


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("Hi", "'messages' must be a list of turns with 'role' and 'content'; got str"),
        ([{"role": "user", "text": "Hi"}], "a turn has 'role' and 'content'.*found 'role', 'text'"),
        ([["user", "Hi"]], "must be a list of turns"),
        ([{"role": 1, "content": "Hi"}], "'role' of a turn is a string, and.*; got int and str"),
        ([{"from": ["human"], "value": "Hi"}], "got list and str"),
        ([{"role": "user", "content": {"text": "Hi"}}], "'content' too or a list of parts; got str and dict"),
        ([{"from": "human", "value": 7}], "got str and int"),
    ],
)
def test_other_chats_are_refused(value: object, message: str) -> None:
    with pytest.raises(DataError, match=f"row 3: .*{message}"):
        from_record({"messages": value}, "row 3")


@pytest.mark.parametrize(
    "record",
    [
        {"text": ""},
        {"text": None},
        {"text": " \n\t"},
        {"question": None, "answer": None},
        {"question": "", "answer": "x"},
        {"messages": []},
        {"conversations": None},
    ],
    ids=str,
)
def test_blank_and_null_fields_make_a_blank_document(record: dict[str, object]) -> None:
    assert from_record(record, "row 0").blank


@pytest.mark.parametrize(("given", "reads"), [("Count on", "Count on."), ("So!", "So!"), ("A.  ", "A."), ("3", "3.")])
def test_reasoning_ends_with_a_full_stop(given: str, reads: str) -> None:
    made = Document(question="Q", answer="2", rationale=given).answered(rationale=True)
    assert made == f"Question: Q\nAnswer: {reads} So the answer is 2."


def test_a_record_with_null_fields_is_plain_text() -> None:
    assert from_record({"text": "T", "question": None}, "row 0") == Document(text="T")
