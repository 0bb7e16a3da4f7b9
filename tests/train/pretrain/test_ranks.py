"""Two and three ranks, copies and shards, train as one process does; shards go on with any number of them."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.ranks import finished, start
from tests.train.pretrain import ranked, small

from lowdim.train.pretrain.api import pretrain


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    size, home = request.param, tmp_path_factory.mktemp(f"ranks{request.param}")
    done = finished(size, home, ranked.main)
    return size, done


@pytest.fixture
def found(home: tuple[int, Path]) -> dict[str, Any]:
    size, place = home
    ranks = [json.loads((place / f"{rank}.json").read_text()) for rank in range(size)]
    assert all(rank == ranks[0] for rank in ranks)
    return dict(ranks[0])


def logged(out: Path) -> list[float]:
    return [line[1] for line in small.losses(out) if line[1] is not None]


@pytest.mark.parametrize("kind", ranked.LAYERED)
def test_blocks_and_layers_train_as_in_one_process_and_resume(kind: str, tmp_path: Path) -> None:
    main = partial(ranked.layered, kind=kind)
    place = finished(2, tmp_path, main)
    found, other = (json.loads((place / f"{rank}.json").read_text()) for rank in range(2))
    assert found == other and found["resumed"] == found["whole"]
    assert small.weights(place / "resumed") == small.weights(place / "whole")
    alone, int8 = tmp_path / "alone", kind.startswith("int8")
    settings = ranked.settings(kind) | ({"parallel": "ddp"} if int8 else {})  # one process has no shards of codes
    pretrain(small.recipe(place / "text.jsonl", **settings), out=alone)
    assert logged(place / "whole") == pytest.approx(logged(alone), rel=1e-3 if int8 else 1e-4)
    one, other = (load_file(path / "model.safetensors") for path in (place / "whole", alone))
    assert one.keys() == other.keys()
    for name, value in one.items():
        apart = (value - other[name]).norm() / other[name].norm()  # of single weights Adam decides by a gradient's sign
        assert apart < (0.02 if int8 else 1e-3), name
    said, wanted = (json.loads((path / "pretraining.json").read_text()) for path in (place / "whole", alone))
    assert said.get("sampling") == wanted.get("sampling") and said.get("rank") == wanted.get("rank")


@pytest.mark.parametrize("kind", ranked.KINDS)
def test_the_losses_are_those_of_one_process(
    kind: str, home: tuple[int, Path], found: dict[str, Any], tmp_path: Path
) -> None:
    size, place = home
    alone = pretrain(small.recipe(place / "text.jsonl", **ranked.settings(kind)), out=tmp_path / "out")
    close = 2e-2 if kind == "ddp" else 1e-4  # in bfloat16
    assert len(logged(place / kind)) == ranked.STEPS
    assert logged(place / kind) == pytest.approx(logged(tmp_path / "out"), rel=close)
    assert found[kind]["tokens"] == alone.facts["tokens"]
    for mine, theirs in zip(found[kind]["curve"], alone.facts["curve"], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=close)
    one, other = (load_file(path / "model.safetensors") for path in (place / kind, tmp_path / "out"))
    assert one.keys() == other.keys()
    assert all(value.shape == other[name].shape for name, value in one.items())
    assert json.loads((place / f"{kind}.run.json").read_text())["processes"] == size


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_run_that_stopped_goes_on_to_the_same_bytes(kind: str, home: tuple[int, Path], found: dict[str, Any]) -> None:
    _, place = home
    assert found[f"{kind}-resumed"] == found[kind]
    assert small.weights(place / f"{kind}-resumed") == small.weights(place / kind)
    assert small.losses(place / f"{kind}-resumed") == small.losses(place / kind)


def test_shards_of_several_processes_go_on_in_one(home: tuple[int, Path], tmp_path: Path) -> None:
    _, place = home
    shutil.copytree(place / "resharded.partial", tmp_path / "resharded.partial")
    shutil.copy(place / "resharded.log.jsonl", tmp_path)
    made = pretrain(
        small.recipe(place / "text.jsonl", **ranked.settings("fsdp")), out=tmp_path / "resharded", resume=True
    )
    assert made.facts["steps"] == ranked.STEPS
    assert logged(tmp_path / "resharded") == pytest.approx(logged(place / "fsdp"), rel=1e-4)
    assert not list((tmp_path / "resharded").glob("shards*"))


@pytest.mark.parametrize(
    ("place", "kind", "where"),
    [
        ("loss", "ddp", "so that step 3 came to no end"),
        ("shards", "fsdp", "so that step 2 came to no end"),
        pytest.param("look", "fsdp", "so that step 2 came to no end", marks=pytest.mark.slow),
        pytest.param("load", "fsdp", "so that step 1 came to no end", marks=pytest.mark.slow),
        pytest.param("save", "ddp", "so that step 2 came to no end", marks=pytest.mark.slow),
        pytest.param("write", "fsdp", "after the last step", marks=pytest.mark.slow),
        pytest.param("write", "ddp", "after the last step", marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_dies_is_told_and_loses_nothing(
    place: str, kind: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    start(2, home, partial(ranked.dying, place=place, kind=kind))
    assert not (home / "raised").exists(), (home / "raised").read_text()
    said = (home / "said").read_text()
    assert f"another process of this run has ended, {where}" in said
    assert "resume from there" in said
    monkeypatch.setenv("LOWDIM_CACHE", str(home / "cache"))
    made = pretrain(small.recipe(home / "text.jsonl", **ranked.mortal(kind)), out=home / "out", resume=True)
    assert made.facts["steps"] == ranked.STEPS
    assert [step for step, loss, *_ in small.losses(home / "out") if loss is not None] == [1, 2, 3]
