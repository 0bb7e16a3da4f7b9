"""The user's own samples: what is read, what is refused, and what a network is given."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lowdim.data import classification
from lowdim.data.errors import DataError
from lowdim.data.labelled.open import open_source
from lowdim.data.labelled.source import Columns, Source, encoded


def pictures(home: Path, each: int = 3) -> Path:
    for number, name in enumerate(("cat", "dog")):
        (home / name / "more").mkdir(parents=True)
        for place in range(each):
            value = np.full((6 + place, 9, 3), 50 * number + place, dtype=np.uint8)
            Image.fromarray(value).save(home / name / ("more" if place else "") / f"{place}.png")
    (home / ".hidden").mkdir()
    (home / "empty").mkdir()
    return home


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    found = open_source(pictures(tmp_path / "pets"), size=8)
    assert (found.name, found.kind, found.classes) == ("pets", "image", ("cat", "dog"))
    assert found.names == (
        "cat/0.png",
        "cat/more/1.png",
        "cat/more/2.png",
        "dog/0.png",
        "dog/more/1.png",
        "dog/more/2.png",
    )
    assert isinstance(found.x, torch.Tensor) and found.x.shape == (6, 3, 8, 8)
    assert found.x[:, 0, 0, 0].tolist() == [0, 1, 2, 50, 51, 52]
    data = found.dataset()
    assert data.shape == (3, 8, 8) and torch.equal(data.train.y, found.y) and not len(data.test.y)
    assert abs(float(data.train.x.mean())) < 1e-5
    assert len(open_source(tmp_path / "pets", size=8, limit=2).y) == 2


def test_unreadable_pictures_are_named_and_counted_and_skipped_only_if_asked(tmp_path: Path) -> None:
    home = pictures(tmp_path / "pets")
    for number in range(6):
        (home / "cat" / f"bad{number}.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"6 of 12 pictures .* cat/bad0\.jpg, .* and 1 more.*--skip-unreadable"):
        open_source(home, size=8)
    found = open_source(home, size=8, skip=True)
    assert len(found.y) == 6 and found.skipped == tuple(f"cat/bad{number}.jpg" for number in range(6))


def test_a_class_whose_pictures_are_all_lost_is_named(tmp_path: Path) -> None:
    home = pictures(tmp_path / "pets")
    (home / "eel").mkdir()
    (home / "eel" / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match="no picture of class 'eel'"):
        open_source(home, size=8, skip=True)


def test_a_folder_without_classes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="0 folders with pictures"):
        open_source(tmp_path)


def test_texts_of_csv_and_json_lines(tmp_path: Path) -> None:
    rows = [{"text": 'one, "two"', "label": "b"}, {"text": "three\nfour", "label": "a"}]
    table = tmp_path / "t.csv"
    table.write_text('text,label\n"one, ""two""",b\n"three\nfour",a\n', encoding="utf-8")
    lines = tmp_path / "t.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for path in (table, lines):
        found = open_source(path)
        assert (found.kind, list(found.x), found.classes) == ("text", [row["text"] for row in rows], ("a", "b"))
        assert found.y.tolist() == [1, 0] and found.names == ("1", "2")
        data = found.dataset()
        assert data.kind == "text" and data.vocabulary == 2 + 4


def test_columns_have_the_names_that_they_are_given(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("body,topic,key\nx,p,k1\ny,q,k2\n")
    found = open_source(path, columns=Columns(text="body", label="topic", id="key"))
    assert found.names == ("k1", "k2") and found.classes == ("p", "q")
    with pytest.raises(DataError, match=r"no column 'text' for the text.*--text"):
        open_source(path)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("text,label\nx,a\n,b\n", "line 3: column 'text' holds no text"),
        ("text,label\nx,a\ny,\n", "1 samples have no class, the first is sample 2"),
        ("text,label\nx,a\ny,a\n", "one class alone, 'a'"),
        ("text,label\n", "holds no samples"),
        ("text,label\nx, y,a\n", "more cells than columns"),
    ],
)
def test_tables_that_cannot_be_ranked(tmp_path: Path, content: str, match: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=match):
        open_source(path)


def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("text,label,file\nx,a,1.txt\ny,b,1.txt\n")
    with pytest.raises(DataError, match=r"2 samples of t\.csv are called '1\.txt'"):
        open_source(path, columns=Columns(id="file"))


def test_bytes_that_are_no_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"text,label\n\xe9,a\n")
    with pytest.raises(DataError, match="not UTF-8"):
        open_source(path)


def test_a_data_set_object_of_texts_and_of_pictures() -> None:
    datasets = pytest.importorskip("datasets")
    labels = datasets.ClassLabel(names=["no", "yes"])
    texts = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, 1]}).cast_column("label", labels)
    found = open_source(texts)
    assert found.classes == ("no", "yes") and found.y.tolist() == [1, 0, 1] and list(found.x) == ["a", "b", "c"]
    made = [Image.fromarray(np.full((4, 4, 3), 40 * value, dtype=np.uint8)) for value in range(3)]
    seen = datasets.Dataset.from_dict(
        {"image": made, "label": ["x", "y", "x"]},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")}),
    )
    found = open_source(seen, size=4, limit=2)
    assert isinstance(found.x, torch.Tensor) and found.x[:, 0, 0, 0].tolist() == [0, 40]
    with pytest.raises(DataError, match=r"such as dataset\['train'\]"):
        open_source(datasets.DatasetDict({"train": texts}))


def test_rows_that_nobody_has_labelled_are_no_class() -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c", "d"], "label": [1, -1, 0, -1]}, features=features)
    with pytest.raises(
        DataError, match=r"2 samples of .* have class -1, .*data\.filter\(lambda row: row\['label'\] >= 0"
    ):
        open_source(rows)
    found = open_source(rows.filter(lambda row: row["label"] >= 0))
    assert found.classes == ("no", "yes") and found.y.tolist() == [1, 0]


def test_grey_of_sixteen_bits_is_scaled_and_not_cut_off(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    values = [0, 257 * 100, 257 * 200, 65535]
    made = [Image.fromarray(np.full((4, 4), value, dtype=np.uint16)) for value in values]
    for number, picture in enumerate(made):
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        picture.save(tmp_path / "ab"[number % 2] / f"{number}.png")
    found = open_source(tmp_path, size=4)
    assert isinstance(found.x, torch.Tensor) and found.x[:, :, 0, 0].unique().tolist() == [0, 100, 200, 255]
    rows = datasets.Dataset.from_dict({"image": made, "label": list("abab")}).cast_column("image", datasets.Image())
    found = open_source(rows, size=4)
    assert isinstance(found.x, torch.Tensor) and found.x[:, 0, 0, 0].tolist() == [0, 100, 200, 255]


def test_a_built_in_set_is_cut_as_training_cuts_it() -> None:
    pytest.importorskip("sklearn")
    found, data = open_source("digits", limit=100), classification.load("digits", limit=100)
    assert found.dataset().fingerprint() == data.fingerprint()
    assert found.names == tuple(map(str, data.rows))


def test_what_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Did you mean 'digits'"):
        open_source("digts")
    (tmp_path / "x.parquet").write_bytes(b"")
    with pytest.raises(DataError, match="is none of"):
        open_source(tmp_path / "x.parquet")
    with pytest.raises(DataError, match="limit must be at least 1"):
        open_source("digits", limit=0)
    with pytest.raises(DataError, match="settings are of built-in sets alone"):
        open_source(tmp_path, settings={"a": 1})
    assert encoded(["1", "10", "2"], "x")[1] == ("1", "2", "10")
    assert isinstance(
        open_source(Source("t", "text", ["a", "b"], torch.tensor([0, 1]), ("a", "b"), ("1", "2"))), Source
    )
