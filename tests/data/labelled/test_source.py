"""The user's own samples: what is read, what is refused, and what a network is given."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.grouped import made

from lowdim.data import classification
from lowdim.data.errors import DataError
from lowdim.data.labelled import own
from lowdim.data.labelled.open import open_source
from lowdim.data.labelled.source import Columns, Source, encoded
from lowdim.data.select.ranks import samples_hash


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
    with pytest.warns(UserWarning, match=r"6 of 12 pictures cannot be read: cat/bad0\.jpg, .* and 1 more; left out"):
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
    values = [Image.fromarray(np.full((4, 4, 3), 40 * value, dtype=np.uint8)) for value in range(3)]
    seen = datasets.Dataset.from_dict(
        {"image": values, "label": ["x", "y", "x"]},
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
    grey = [Image.fromarray(np.full((4, 4), value, dtype=np.uint16)) for value in values]
    for number, picture in enumerate(grey):
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        picture.save(tmp_path / "ab"[number % 2] / f"{number}.png")
    found = open_source(tmp_path, size=4)
    assert isinstance(found.x, torch.Tensor) and found.x[:, :, 0, 0].unique().tolist() == [0, 100, 200, 255]
    rows = datasets.Dataset.from_dict({"image": grey, "label": list("abab")}).cast_column("image", datasets.Image())
    found = open_source(rows, size=4)
    assert isinstance(found.x, torch.Tensor) and found.x[:, 0, 0, 0].tolist() == [0, 100, 200, 255]


def encoded_picture(value: int, mode: str = "RGB") -> bytes:
    """A PNG of one value; an alpha channel is clear."""
    file, channels = io.BytesIO(), {"RGB": (value,) * 3, "RGBA": (value, value, value, 0), "LA": (value, 0)}[mode]
    Image.new(mode, (4, 4), channels).save(file, "PNG")
    return file.getvalue()


def rows_of_pictures(contents: list[bytes | None], labels: list[str]) -> Any:
    datasets = pytest.importorskip("datasets")
    stored = [None if each is None else {"bytes": each, "path": None} for each in contents]
    keys = [f"key {number}" for number in range(len(labels))]
    rows = datasets.Dataset.from_dict({"image": stored, "label": labels, "key": keys})
    features = {"image": datasets.Image(), "label": datasets.Value("string"), "key": datasets.Value("string")}
    return rows.cast(datasets.Features(features))


def test_unreadable_pictures_of_an_object_are_named_and_counted_and_skipped_only_if_asked() -> None:
    contents = [encoded_picture(10), b"no picture", encoded_picture(20), None, encoded_picture(30)[:40]]
    rows = rows_of_pictures(contents, list("abbab"))
    with pytest.raises(DataError, match=r"3 of 5 pictures cannot be read: 2, 4, 5\. .*skip_unreadable=True"):
        open_source(rows, size=4)
    with pytest.warns(UserWarning, match="key 1, key 3, key 4; left out"):
        found = open_source(rows, size=4, skip=True, columns=Columns(id="key"))
    assert found.names == ("key 0", "key 2") and found.skipped == ("key 1", "key 3", "key 4")
    assert isinstance(found.x, torch.Tensor) and found.x[:, 0, 0, 0].tolist() == [10, 20]
    assert found.y.tolist() == [0, 1]
    with pytest.raises(DataError, match="no picture of class 'b' can be read"):
        open_source(rows_of_pictures([encoded_picture(1), b""], ["a", "b"]), size=4, skip=True)


def test_names_and_what_was_skipped_survive_the_names_of_classes() -> None:
    datasets = pytest.importorskip("datasets")
    rows = rows_of_pictures([encoded_picture(1), b"", encoded_picture(3)], ["yes", "yes", "no"])
    with pytest.warns(UserWarning, match="1 of 3 pictures cannot be read: 2; left out"):
        found = open_source(rows.cast_column("label", datasets.ClassLabel(names=["no", "yes"])), size=4, skip=True)
    assert found.classes == ("no", "yes") and found.y.tolist() == [1, 0] and found.skipped == ("2",)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_clear_is_white_in_folders_and_in_objects(tmp_path: Path, mode: str) -> None:
    contents = [encoded_picture(0, mode), encoded_picture(7)]
    for name, content in zip("ab", contents, strict=True):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(content)
    both = open_source(tmp_path, size=4), open_source(rows_of_pictures(contents, ["a", "b"]), size=4)  # type: ignore[arg-type]
    for found in both:
        assert isinstance(found.x, torch.Tensor) and found.x[:, 0, 0, 0].tolist() == [255, 7]


def test_objects_that_cannot_be_read() -> None:
    datasets = pytest.importorskip("datasets")
    rows = rows_of_pictures([encoded_picture(1), encoded_picture(2)], ["a", "b"])
    with pytest.raises(DataError, match=r"no column 'kye' for the id. Did you mean 'key'.*--id"):
        open_source(rows, columns=Columns(id="kye"))
    with pytest.raises(DataError, match=r"no column 'file' for the id"):
        open_source(datasets.Dataset.from_dict({"text": ["x"], "label": ["a"]}), columns=Columns(id="file"))
    with pytest.raises(DataError, match="holds no samples"):
        open_source(rows.select([]))
    with pytest.raises(DataError, match=r"column 'label' of .* holds no pictures. Cast it to datasets.Image\(\)"):
        open_source(rows, columns=Columns(image="label"))


def test_a_built_in_set_is_cut_as_training_cuts_it() -> None:
    pytest.importorskip("sklearn")
    found, data = open_source("digits", limit=100), classification.load("digits", limit=100)
    assert found.dataset().fingerprint() == data.fingerprint()
    assert found.names == tuple(map(str, data.rows))


TAKES = {
    "built in": {"settings"},
    "pictures in a folder": {"size", "skip"},
    "texts in a table": {"text", "label", "id"},
    "texts of an object": {"text", "label", "id"},
    "pictures of an object": {"image", "label", "id", "size", "skip"},
    "read already": set[str](),
}


GIVEN = ("text", "image", "label", "id", "size", "skip", "settings")


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, takes in TAKES.items() for name in GIVEN if name not in takes]
)
def test_what_a_kind_of_data_has_no_use_for_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    datasets = pytest.importorskip("datasets")
    table = tmp_path / "t.csv"
    table.write_text("text,label,c\nx,a,1\ny,b,2\n")
    data = {
        "built in": "digits",
        "pictures in a folder": pictures(tmp_path / "pets"),
        "texts in a table": table,
        "texts of an object": datasets.Dataset.from_dict({"text": ["x", "y"], "label": ["a", "b"]}),
        "pictures of an object": rows_of_pictures([encoded_picture(1), encoded_picture(2)], ["a", "b"]),
        "read already": Source("t", "text", ["x", "y"], torch.tensor([0, 1]), ("a", "b"), ("1", "2")),
    }[kind]
    values = {"size": 8, "skip": True, "settings": {"conflicting": 0.1}}
    given = {name: values[name]} if name in values else {"columns": Columns(**{name: "c"})}
    called = "c" if kind == "texts of an object" and name == "image" else name.split("skip")[-1]
    with pytest.raises(DataError, match=rf"{called}.* (would change nothing: the data is|for the image)"):
        open_source(data, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["folder", "table"])
def test_samples_of_ones_own_are_cut_as_training_cuts_them(tmp_path: Path, kind: str) -> None:
    path, settings = tmp_path / "t.csv", {}
    if kind == "folder":
        path, settings = pictures(tmp_path / "pets", each=20), {"size": 8}
    else:
        path.write_text("text,label\n" + "".join(f"word{n} more,{'ab'[n % 2]}\n" for n in range(40)))
    whole = open_source(path, **settings)
    found = open_source(path, validation=0.25, limit=20, seed=3, **settings)  # type: ignore[arg-type]
    data = classification.load(str(path), validation=0.25, limit=20, seed=3, settings=settings)
    assert [len(part.y) for part in (data.train, data.validation, data.test)] == [20, 8, 8]
    assert samples_hash(found.dataset()) == samples_hash(data)
    assert found.names == tuple(whole.names[row] for row in data.rows) and torch.equal(found.y, data.train.y)
    assert samples_hash(open_source(whole, validation=0.25, limit=20, seed=3).dataset()) == samples_hash(data)
    rows = pytest.importorskip("datasets").Dataset.from_dict({"text": ["x y"] * 40, "label": list("ab") * 20})
    parts = open_source(rows, validation=0.25, limit=20).dataset()
    assert [len(part.y) for part in (parts.train, parts.validation, parts.test)] == [20, 8, 8]
    assert len(found.x) == 20 and len(whole.y) == 40 and whole.cut is None


PLACES = ["sea", "sea", "wood", "sea", "wood", "wood", "wood", "sea", "sea", "wood"] * 4


def placed(home: Path, kind: str) -> tuple[Path, dict[str, str], dict[str, int]]:
    """Forty samples of two classes by turns with a place each: a path, places by the samples' names, settings."""
    if kind.startswith("pictures"):
        path, settings = pictures(home / "pets", each=20), {"size": 8}
        table, names = path / f"metadata.{kind.split()[1]}", open_source(path, size=8).names
        rows = [{"file_name": name, "place": place} for name, place in zip(names, PLACES, strict=True)]
    else:
        path = table = home / f"t.{kind}"
        settings, names = {}, tuple(map(str, range(1, 41)))
        rows = [{"text": f"word{n} more", "label": "ab"[n % 2], "place": place} for n, place in enumerate(PLACES)]
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    table.write_text("\n".join(lines if table.suffix == ".csv" else map(json.dumps, reversed(rows))))
    if table.suffix != ".csv" and path == table:
        names = names[::-1]
    return path, dict(zip(names, PLACES, strict=True)), settings


CUT: dict[str, Any] = {"validation": 0.25, "limit": 20, "seed": 3}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "pictures csv", "pictures jsonl"])
def test_a_column_makes_groups_with_the_class(tmp_path: Path, kind: str) -> None:
    path, told, settings = placed(tmp_path, kind)
    data, parts = own.grouped(str(path), "place", settings=settings, **CUT)
    assert data.fingerprint() == classification.load(str(path), settings=settings, **CUT).fingerprint()
    names = open_source(path, **settings).names  # type: ignore[arg-type]
    groups, conflicting = parts["train"]
    assert groups.names == tuple(f"{label}, place {place}" for label in data.classes for place in ("sea", "wood"))
    pairs = [(y, told[names[row]]) for y, row in zip(data.train.y.tolist(), data.rows, strict=True)]
    assert groups.index.tolist() == [2 * y + (place == "wood") for y, place in pairs]
    usual = [max(("sea", "wood"), key=lambda place: pairs.count((y, place))) for y in (0, 1)]
    assert conflicting.tolist() == [place != usual[y] for y, place in pairs]
    assert [len(parts[part][0]) for part in ("validation", "test")] == [8, 8]


def test_columns_that_make_no_groups(tmp_path: Path) -> None:
    def refused(path: Path, column: str, match: str) -> None:
        with pytest.raises(DataError, match=match):
            own.grouped(str(path), column, settings={"size": 8} if path.is_dir() else {}, **CUT)

    table, _, _ = placed(tmp_path, "csv")
    refused(table, "plaice", r"no column 'plaice' for the groups. Did you mean 'place'.*--groups")
    refused(table, "text", "column 'text' of .* has 40 values for 40 samples, which makes no groups")
    table.write_text(table.read_text().replace("sea", "", 1))
    refused(table, "place", "1 samples have no place, the first is sample 1")
    home = pictures(tmp_path / "bare", each=2)
    refused(home, "place", r"metadata.csv or metadata.jsonl, and .*bare has neither. Write one there")
    rows = ["file_name,place", "cat/0.png,sea", "cat/more/1.png,sea", "dog/0.png,wood"]
    (home / "metadata.csv").write_text("\n".join(rows))
    refused(home, "place", r"1 of 4 pictures have no row in .*, the first is dog/more/1.png")
    (home / "metadata.csv").write_text("\n".join([*rows, rows[1]]))
    refused(home, "place", r"file_name 'cat/0.png' stands in two rows")


def test_flags_that_a_built_in_set_takes(tmp_path: Path) -> None:
    made.celeba(tmp_path)
    how = {"root": str(tmp_path), "size": 8}
    (tmp_path / "img_align_celeba" / "000000.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match="1 of 12 pictures cannot be read"):
        open_source("celeba", settings=how)
    with pytest.warns(UserWarning, match="1 of 12 pictures cannot be read"):
        assert len(open_source("celeba", settings=how, skip=True).y) == 11
    with pytest.raises(DataError, match=r"--size would change nothing: .* Its size is a setting: data.settings.size"):
        open_source("celeba", settings=how, size=16)
    with pytest.raises(DataError, match="--skip-unreadable would change nothing"):
        open_source("cifar-10-c", settings={"root": str(tmp_path)}, skip=True)
    with pytest.raises(DataError, match="validation must be a share"):
        open_source("celeba", settings=how, validation=1.0)


def test_what_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Did you mean 'digits'"):
        open_source("digts")
    (tmp_path / "x.parquet").write_bytes(b"")
    with pytest.raises(DataError, match="is none of"):
        open_source(tmp_path / "x.parquet")
    for name in ("no/such/", "none.csv"):
        with pytest.raises(DataError, match=rf"data '{name}': there is no such"):
            classification.load(name)
    with pytest.raises(DataError, match="size must be at least 1 pixel, got 0"):
        open_source(tmp_path, size=0)
    with pytest.raises(DataError, match="limit must be at least 1"):
        open_source("digits", limit=0)
    assert encoded(["1", "10", "2"], "x")[1] == ("1", "2", "10")
    assert isinstance(
        open_source(Source("t", "text", ["a", "b"], torch.tensor([0, 1]), ("a", "b"), ("1", "2"))), Source
    )
