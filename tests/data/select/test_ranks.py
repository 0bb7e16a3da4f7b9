"""Ranks: what they refuse, the groups that they make, and the way to disk and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lowdim.core.errors import RecipeError
from lowdim.data.classification import Dataset
from lowdim.data.errors import DataError
from lowdim.data.raw import Split
from lowdim.data.select.groups import Groups
from lowdim.data.select.ranks import CSV, JSON, Ranks, samples_hash
from lowdim.runs.lock import OutputError


def data(count: int = 10) -> Dataset:
    x = torch.arange(count * 2, dtype=torch.float32).reshape(count, 2)
    split = Split(x, torch.arange(count) % 2)
    return Dataset("t", "table", split, split, split, ("a", "b"))


def ranks(rank: list[int] | None = None, names: tuple[str, ...] = ()) -> Ranks:
    some = data()
    found = torch.tensor(rank or [1, 1, 1, 1, 1, 1, 2, 2, 3, 4])
    values = {"p": torch.linspace(0, 1, 10), "margin": torch.linspace(-1, 1, 10)}
    return Ranks(found, some.train.y, some.classes, samples_hash(some), "test", {"beta": 0.7}, names, values, {"n": 1})


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    names = ("a,b", 'quote"', "line\nbreak", "ümlaut", " space", *map(str, range(5)))
    one = ranks(names=names)
    home = one.save(tmp_path / "ranks")
    two = Ranks.load(home)
    assert torch.equal(one.rank, two.rank) and torch.equal(one.label, two.label)
    assert torch.equal(one.values["margin"], two.values["margin"])
    assert (two.names, two.classes, two.data, two.method) == (names, one.classes, one.data, "test")
    assert (two.settings, two.facts) == ({"beta": 0.7}, {"n": 1})
    again = ranks(names=names).save(tmp_path / "again")
    assert {p.name: p.read_bytes() for p in home.iterdir()} == {p.name: p.read_bytes() for p in again.iterdir()}


def test_an_output_is_replaced_only_if_asked(tmp_path: Path) -> None:
    ranks().save(tmp_path / "ranks")
    with pytest.raises(OutputError, match="exists"):
        ranks().save(tmp_path / "ranks")
    ranks([1] * 10).save(tmp_path / "ranks", overwrite=True)
    assert int(Ranks.load(tmp_path / "ranks").rank.max()) == 1


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    home = ranks().save(tmp_path / "ranks")
    table = (home / CSV).read_text()
    (home / CSV).write_text(table.replace("9,b,4", "9,b,3"))
    with pytest.raises(DataError, match="different ranks"):
        Ranks.load(home)
    (home / JSON).unlink()
    with pytest.raises(DataError, match=r"ranks\.json is missing"):
        Ranks.load(home)


def test_ranks_of_other_samples_are_refused() -> None:
    some = data()
    assert ranks().check(some) is not None
    moved = replace(some, train=Split(some.train.x + 1, some.train.y))
    turned = replace(some, train=Split(some.train.x.flip(0), some.train.y.flip(0)))
    named = replace(some, classes=("b", "a"))
    for other in (moved, turned, named, data(12)):
        with pytest.raises(DataError, match="other samples"):
            ranks().check(other)
    assert ranks().check(replace(some, validation=Split(some.train.x[:2], some.train.y[:2])))


def test_the_last_ranks_of_a_class_conflict_as_far_as_the_share_goes() -> None:
    groups = ranks().groups(0.4)
    # class a: ranks 1 1 1 2 3 at 0 2 4 6 8; class b: 1 1 1 2 4 at 1 3 5 7 9; 2 of 5 may conflict
    assert groups.index.tolist() == [0, 2, 0, 2, 0, 2, 1, 3, 1, 3]
    assert groups.names == ("a, spurious", "a, conflicting", "b, spurious", "b, conflicting")
    assert ranks().groups(0.2).index.tolist() == [0, 2, 0, 2, 0, 2, 0, 2, 1, 3]
    assert ranks().groups(0.0).index.tolist() == [0, 2, 0, 2, 0, 2, 0, 2, 1, 3]
    assert ranks().groups(1.0).index.tolist() == [0, 2, 0, 2, 0, 2, 1, 3, 1, 3]


def test_a_class_of_one_rank_has_no_groups() -> None:
    with pytest.raises(DataError, match="class 'b' share one rank"):
        ranks([1, 1, 2, 1, 1, 1, 2, 1, 3, 1]).groups()
    with pytest.raises(RecipeError, match="share must be between 0 and 1"):
        ranks().groups(1.5)


@pytest.mark.parametrize(
    ("rank", "names", "match"),
    [
        ([0] * 10, (), "start at 1"),
        ([1] * 9, (), "label has 10"),
        ([1] * 10, ("x",) * 10, "two samples are called 'x'"),
    ],
)
def test_what_are_no_ranks(rank: list[int], names: tuple[str, ...], match: str) -> None:
    with pytest.raises(DataError, match=match):
        ranks(rank, names)


def test_the_last_rank_of_each_class() -> None:
    assert ranks().last().tolist() == [3, 4]


@pytest.mark.parametrize("index", [[0, 2], [-1, 0]])
def test_groups_out_of_range_name_the_sample(index: list[int]) -> None:
    with pytest.raises(DataError, match="groups run from 0 to 1"):
        Groups(torch.tensor(index), ("x", "y"))
    with pytest.raises(DataError, match="of 2 samples"):
        Groups(torch.tensor([0, 1]), ("x", "y")).check(3)
