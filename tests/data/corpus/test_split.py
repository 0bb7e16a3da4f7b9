from __future__ import annotations

import json
from pathlib import Path

import pytest

from lowdim.data import text
from lowdim.data.corpus.split import Corpus
from lowdim.data.errors import DataError


def rows(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": each}) + "\n" for each in texts))
    return path


def test_each_document_is_on_one_side_and_equal_ones_together(tmp_path: Path) -> None:
    said = [f"document {i % 30}" for i in range(40)]  # ten of them twice
    split = Corpus([str(rows(tmp_path / "a.jsonl", said))], 0.2).split()
    train, held = ([each.text for each in side] for side in (split.train(), split.validation()))
    assert sorted(train + held) == sorted(said) and not set(train) & set(held)
    assert len(set(held)) == 6 and split.documents == 40


def test_the_split_depends_on_what_documents_say_alone(tmp_path: Path) -> None:
    said = [f"document {i}" for i in range(40)]
    one = Corpus([str(rows(tmp_path / "a.jsonl", said))], 0.2).split()
    parts = [str(rows(tmp_path / f"{i}.jsonl", said[::-1][i * 20 : i * 20 + 20])) for i in range(2)]
    other = Corpus(parts, 0.2).split()
    assert one.held == other.held and one.digest != other.digest


def test_a_validation_text_of_its_own_leaves_the_training_text(tmp_path: Path) -> None:
    train = rows(tmp_path / "a.jsonl", [f"document {i}" for i in range(9)])
    held = rows(tmp_path / "b.jsonl", ["document 3", "another"])
    split = Corpus([str(train)], str(held)).split()
    assert [each.text for each in split.validation()] == ["document 3", "another"]
    assert [each.text for each in split.train()] == [f"document {i}" for i in range(9) if i != 3]


def test_a_separator_cuts_a_text_that_is_read_piece_by_piece(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    said = [f"{i} " + "x" * 7000 for i in range(400)]  # almost three pieces of a million characters
    path.write_text("\n\n\n".join(said))
    split = Corpus([str(path)], 0.01, separator="\n\n\n").split()
    assert split.documents == 400
    assert sorted(d.text for side in (split.train(), split.validation()) for d in side) == sorted(said)


def test_one_document_cannot_be_split(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("only one text")
    with pytest.raises(DataError, match=r"is one document, .*data\.separator.*data\.validation"):
        Corpus([str(tmp_path / "a.txt")]).split()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"text": "a"}\nnot json\n', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", '{"text": "a"}\n{"body": "b"}\n', "a.jsonl, line 2: expected 'text'"),
        ("a.csv", "a,b", "no tables"),
        ("a.jsonl", '{"text": ""}\n{"text": null}\n', "hold no text"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said):
        Corpus([str(tmp_path / name)]).split()


def test_a_stream_is_what_read_returns(tmp_path: Path) -> None:
    rows(tmp_path / "a.jsonl", ["one", "two"])
    (tmp_path / "b.json").write_text(json.dumps([{"text": "three"}, {"question": "4?", "answer": "5"}]))
    (tmp_path / "c.txt").write_text("six")
    (tmp_path / "d.jsonl").write_text('[{"text": "seven"}]\n')
    assert list(text.stream(tmp_path)) == text.read(tmp_path)


def test_bytes_that_are_no_text_are_told_with_their_place(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(DataError, match=r"is not UTF-8 text: byte 24 is 0xff"):
        list(text.stream(tmp_path / "a.jsonl"))


def test_a_separator_that_cuts_nothing_is_refused(tmp_path: Path) -> None:
    rows, folder = tmp_path / "rows.jsonl", tmp_path / "folder"
    rows.write_text('{"text": "one"}\n{"text": "two"}\n')
    folder.mkdir()
    (folder / "rows.jsonl").write_bytes(rows.read_bytes())
    named, blank = tmp_path / "rows.txt", tmp_path / "blank.txt"
    named.write_bytes(rows.read_bytes())
    blank.write_bytes(b"\n\n" + rows.read_bytes())
    for sources in ([str(rows)], [str(folder)], ["builtin"], [str(named)], [str(blank), str(folder)]):
        with pytest.raises(DataError, match=r"data\.separator='##' stands between documents of text files"):
            Corpus(sources, 0.5, separator="##").split()
    (folder / "more.txt").write_text("three##four")
    assert Corpus([str(folder)], 0.5, separator="##").split().documents == 4
