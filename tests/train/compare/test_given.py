"""Data, groups and ranks that Python gives beside a recipe: other ones are another run, and empty parts are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.compare.grouped import biased, ranks, recipe

from lowdim.core.errors import RecipeError
from lowdim.data.errors import DataError
from lowdim.data.labelled.source import Source
from lowdim.data.raw import Split
from lowdim.data.select.groups import Groups
from lowdim.runs.fingerprint import ResumeError
from lowdim.train.compare.run import train
from lowdim.train.compare.store import Store
from lowdim.train.compare.told import Labelled
from lowdim.train.selection.api import rank

DATA, GROUPS = biased()
RANKS = ranks(DATA, GROUPS)


class Killed(BaseException):
    pass


def regrouped(part: str, what: str) -> dict[str, Labelled]:
    """The groups of one part with another index, other names or other conflicting samples."""
    known = GROUPS[part]
    index, names, conflicting = known.groups.index.clone(), list(known.groups.names), known.conflicting.clone()
    if what == "index":
        index[0] = (index[0] + 1) % len(names)
    elif what == "names":
        names[0] += "?"
    else:
        conflicting[0] = ~conflicting[0]
    return {**GROUPS, part: Labelled(Groups(index, tuple(names)), conflicting)}


def test_other_groups_are_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dying(self: Store, file: str, content: Any) -> None:
        put(self, file, content)
        raise Killed

    asked, put = recipe(objective="group-dro", twins=[], epochs=2), Store.put
    with monkeypatch.context() as patch:
        patch.setattr(Store, "put", dying)
        with pytest.raises(Killed):
            train(asked, data=DATA, groups=GROUPS, out=tmp_path / "out")
    for part in ("train", "validation", "test"):
        for what in ("index", "names", "conflicting"):
            with pytest.raises(ResumeError, match="differs in groups"):
                train(asked, data=DATA, groups=regrouped(part, what), out=tmp_path / "out", resume=True)
    with pytest.raises(ResumeError, match="differs in groups"):
        train(asked, data=DATA, groups={"train": GROUPS["train"]}, out=tmp_path / "out", resume=True)
    train(asked, data=DATA, groups=GROUPS, out=tmp_path / "out", resume=True)


@pytest.mark.parametrize(("kind", "name"), [("objective", "sebra"), ("sampler", "ranked")])
def test_ranks_in_python_are_ranks(kind: str, name: str, tmp_path: Path) -> None:
    asked = recipe(**{kind: name}, twins=[])
    with pytest.raises(RecipeError, match=rf"{kind} '{name}' needs ranks .* the argument ranks"):
        train(asked, data=DATA, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    named = train(recipe(**{kind: name}, ranks="given", twins=[]), data=DATA, ranks=RANKS)
    assert train(asked, data=DATA, ranks=RANKS).facts["members"] == named.facts["members"]


@pytest.mark.parametrize(("kind", "name"), [("objective", "erm"), ("objective", "jtt"), ("sampler", "dynamic-pruning")])
def test_ranks_that_nothing_trains_with_are_refused(kind: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=rf"ranks does not go with .*{kind} '{name}'.* neither trains with ranks"):
        train(recipe(**{kind: name}), data=DATA, ranks=RANKS, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_groups_are_named_by_the_recipe_or_given_and_not_both(tmp_path: Path) -> None:
    asked = recipe(groups="colour", twins=[])
    for given in ({"data": DATA}, {"groups": GROUPS}, {"data": DATA, "groups": GROUPS}):
        with pytest.raises(RecipeError, match="groups='colour' does not go with data or groups given to train"):
            train(asked, out=tmp_path / "out", **given)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_a_part_without_samples_is_refused_before_any_training(part: str, tmp_path: Path) -> None:
    left = replace(DATA, **{part: Split(DATA.train.x[:0], DATA.train.y[:0])})  # type: ignore[arg-type]
    with pytest.raises(DataError, match=rf"the {part} part of data 'digits' is empty.*validation=0.1"):
        train(recipe(), data=left, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_ranking_in_python_goes_into_training() -> None:
    x = (DATA.train.x * 40).clamp(0, 255).to(torch.uint8)
    made = Source("m", "image", x, DATA.train.y, DATA.classes, tuple(map(str, range(len(x)))))
    how = {"method": {"name": "sebra", "lr": 0.003, "epochs": 4, "p_crit": 0.5}}
    asked = recipe(objective="sebra", twins=[])
    whole = rank(made, **how)
    with pytest.raises(DataError, match="the validation part of data 'm' is empty"):
        train(asked, data=whole.data, ranks=whole.ranks)
    found = rank(made, validation=0.2, **how)
    assert 0 <= train(asked, data=found.data, ranks=found.ranks).member("sparse")["test"]["accuracy"] <= 1
