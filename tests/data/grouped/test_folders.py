"""The usual sets, from miniature copies of their folders: counts, classes, cues, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data.grouped import made

from lowdim.core.errors import RecipeError
from lowdim.data.classification import find, load
from lowdim.data.errors import DataError
from lowdim.data.planted.told import truths


def settings(root: Path, **more: Any) -> dict[str, Any]:
    return {"root": str(root), "size": 8, **more}


def test_urbancars_has_two_cues_and_the_authors_validation_and_test(tmp_path: Path) -> None:
    made.urbancars(tmp_path)
    data = load("urbancars", settings=settings(tmp_path))
    assert (len(data.train.y), len(data.validation.y), len(data.test.y)) == (12, 8, 8)
    assert data.shape == (3, 8, 8)
    truth = truths("urbancars", settings=settings(tmp_path))
    assert torch.equal(truth.train.label, data.train.y)
    assert torch.equal(truth.validation.label, data.validation.y)
    assert truth.train.names == ("background", "object")
    assert truth.train.conflicting().sum(0).tolist() == [4, 4]
    assert truth.test.groups().counts() == {
        "urban, spurious": 1,
        "urban, conflicting": 3,
        "country, spurious": 1,
        "country, conflicting": 3,
    }


def test_bar_reads_the_action_from_the_file(tmp_path: Path) -> None:
    made.bar(tmp_path)
    data = load("bar", settings=settings(tmp_path), validation=0.2)
    assert data.classes[5] == "pole vaulting"
    assert torch.bincount(data.test.y).tolist() == [3] * 6
    with pytest.raises(DataError, match="nothing was planted"):
        truths("bar", settings=settings(tmp_path))


@pytest.mark.parametrize("ending", ["txt", "csv"])
def test_celeba_by_hand(tmp_path: Path, ending: str) -> None:
    made.celeba(tmp_path, ending)
    data = load("celeba", settings=settings(tmp_path))
    truth = truths("celeba", settings=settings(tmp_path))
    assert (len(data.train.y), len(data.validation.y), len(data.test.y)) == (12, 4, 4)
    assert data.classes == ("not Blond_Hair", "Blond_Hair")
    # of the training pictures 0, 1, 2, 5, 6, 7, ...: blond where the number divides by 3, male where it is odd
    numbers = [n for n in range(20) if n % 5 < 3]
    blond, male = [int(n % 3 == 0) for n in numbers], [n % 2 for n in numbers]
    want = sum(b != 1 - m for b, m in zip(blond, male, strict=True))
    assert int(truth.train.conflicting().sum()) == want
    same = truths("celeba", settings=settings(tmp_path, opposite=False))
    assert int(same.train.conflicting().sum()) == len(numbers) - want


@pytest.mark.parametrize(
    ("name", "classes", "inside"), [("cmnist", 10, True), ("corrupted-cifar-10", 10, True), ("bffhq", 2, False)]
)
def test_folders_of_aligned_and_conflicting_pictures(tmp_path: Path, name: str, classes: int, inside: bool) -> None:
    made.percent(tmp_path, classes, inside)
    how = settings(tmp_path, percent="1pct")
    data, truth = load(name, settings=how), truths(name, settings=how)
    assert (len(data.train.y), len(data.validation.y)) == (5 * classes, classes)
    assert len(data.test.y) == classes * classes
    assert int(truth.train.conflicting().sum()) == classes
    assert bool(truth.validation.conflicting().all())
    some = load(name, settings=how | {"samples": 2 * classes})
    assert len(some.train.y) == 2 * classes
    assert len(some.test.y) == classes * classes


def test_cifar_10_c_takes_one_severity(tmp_path: Path) -> None:
    made.cifar10c(tmp_path)
    data = load("cifar-10-c", settings={"root": str(tmp_path), "corruption": "fog", "severity": 4}, validation=0.2)
    assert (len(data.train.y), len(data.validation.y), len(data.test.y)) == (32, 8, 10)
    assert data.test.y.tolist() == list(range(10))
    assert data.test.x.unique().numel() == 1
    with pytest.raises(DataError, match=r"no corruption 'fogg'. Did you mean 'fog'"):
        load("cifar-10-c", settings={"root": str(tmp_path), "corruption": "fogg"})


def test_the_middle_of_a_picture_on_white_is_what_is_read(tmp_path: Path) -> None:
    from PIL import Image

    from lowdim.data.grouped.pictures import square

    wide = Image.new("RGBA", (30, 10), (0, 0, 0, 0))
    wide.paste((255, 0, 0, 255), (10, 0, 20, 10))
    wide.save(tmp_path / "wide.png")
    found = square(tmp_path / "wide.png", 10)
    assert found[0].unique().tolist() == [255]
    assert found[1].unique().tolist() == [0]
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert square(tmp_path / "clear.png", 4).unique().tolist() == [255]


def test_unreadable_pictures_are_named_counted_and_skipped_if_asked(tmp_path: Path) -> None:
    made.bar(tmp_path)
    for n in range(7):
        (tmp_path / "train" / f"racing_9{n}.png").write_bytes(b"no picture")
    with pytest.raises(
        DataError, match=r"7 of 25 pictures cannot be read: .*racing_90.png.* and 2 more.*unreadable=skip"
    ):
        load("bar", settings=settings(tmp_path))
    with pytest.warns(UserWarning, match="7 of 25"):
        data = load("bar", settings=settings(tmp_path, unreadable="skip"), validation=0.2)
    assert len(data.train.y) + len(data.validation.y) == 18


@pytest.mark.parametrize(
    ("name", "make", "change", "message"),
    [
        ("bar", made.bar, {"root": ""}, "give its path"),
        ("bar", made.bar, {"root": "/nowhere"}, "/nowhere.* does not exist"),
        ("celeba", made.celeba, {"target": "Blonde_Hair"}, "Did you mean 'Blond_Hair'"),
        ("urbancars", made.bar, {}, "does not exist"),
    ],
)
def test_a_wrong_folder_is_named(
    tmp_path: Path, name: str, make: Callable[[Path], None], change: dict[str, Any], message: str
) -> None:
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        load(name, settings=settings(tmp_path) | change)


def test_a_file_that_is_not_of_the_set_is_named(tmp_path: Path) -> None:
    made.percent(tmp_path, 2, False)
    made.picture(tmp_path / "1pct" / "align" / "0" / "3_0_5.png", 0)
    with pytest.raises(DataError, match=r"3_0_5.png is of class 0 with cues of classes \[5\]"):
        load("bffhq", settings=settings(tmp_path, percent="1pct"))
    made.picture(tmp_path / "1pct" / "align" / "0" / "face.png", 0)
    with pytest.raises(DataError, match=r"face.png does not end in _CLASS_BIAS"):
        load("bffhq", settings=settings(tmp_path, percent="1pct"))


def test_settings_that_no_set_takes_are_refused() -> None:
    with pytest.raises(DataError, match="takes no settings, got root"):
        load("digits", settings={"root": "x"})
    with pytest.raises(RecipeError, match=r"unknown setting of this data 'rot'. Did you mean 'root'"):
        load("bar", settings={"rot": "x"})
    with pytest.raises(RecipeError, match="severity must be"):
        load("cifar-10-c", settings={"severity": 6})
    assert find("bar").cues == ()
