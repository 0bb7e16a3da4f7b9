"""Two ranks fine-tune as one process does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.ranks import finished
from tests.train.finetune import ranked
from tests.train.pretrain import small

from lowdim.core.masks import Masks
from lowdim.train.finetune.api import finetune

pytestmark = pytest.mark.filterwarnings("ignore:.*are ties, which this objective has no place for")


@pytest.fixture(scope="module")
def place(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ranks")
    shutil.copytree(home, place, ignore=shutil.ignore_patterns("cache", "packed*", "dense*"), dirs_exist_ok=True)
    return finished(2, place, ranked.main)


@pytest.mark.parametrize("kind", ranked.KINDS)
def test_the_losses_are_those_of_one_process(kind: str, place: Path, tmp_path: Path) -> None:
    found: list[dict[str, Any]] = [json.loads((place / f"{rank}.json").read_text())[kind] for rank in range(2)]
    assert found[0] == found[1]
    alone = finetune(ranked.settings(kind, place.parent), out=tmp_path / "out")
    mine, theirs = ([line[1] for line in small.losses(out) if line[1] is not None] for out in (place / kind, alone.out))
    assert len(mine) == 3 and mine == pytest.approx(theirs, rel=1e-3)
    for one, other in zip(found[0]["curve"], alone.facts["curve"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
    assert Masks.load(place / kind) == Masks.load(place.parent / "pruned")
    one, other = (load_file(path / "model.safetensors") for path in (place / kind, alone.out))
    assert one.keys() == other.keys()
