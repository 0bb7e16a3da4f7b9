"""Models that stay on the way: they load, are those of their step, and change nothing of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.train.pretrain import small

from lowdim.core.errors import RecipeError
from lowdim.models.load import load
from lowdim.train.pretrain.api import pretrain
from lowdim.train.pretrain.engine import Engine
from lowdim.train.pretrain.prepare import prepare

FACTORS = {"rank": "uniform", "factors": {"keep": 0.5, "written": "factors"}}


@pytest.mark.filterwarnings("ignore")  # of torch, which says that there is one process
@pytest.mark.parametrize(
    "settings",
    [
        {"placement": "lns"},
        FACTORS,
        {"rank": "uniform", "factors": {"keep": 0.5}},
        {"parallel": "fsdp"},
        {"optimizer": {"name": "q-galore", "rank": 4, "gap": 2, "inner": "adamw"}},
    ],
    ids=str,
)
def test_kept_models_are_those_of_their_steps(settings: dict[str, Any], text: Path, tmp_path: Path) -> None:
    settings = {"steps": 5, "evaluation": {"every": 2}, **settings}
    plain = small.run(text, tmp_path / "plain", **settings)
    made = small.run(text, tmp_path / "out", keep=2, **settings)
    assert small.weights(made.out) == small.weights(plain.out) and made.facts["curve"] == plain.facts["curve"]
    kept = sorted((made.out / "checkpoints").iterdir())
    assert [place.name for place in kept] == ["step-2", "step-4"]
    run = Engine().begin(prepare(small.recipe(text, **settings | {"parallel": "ddp"})))
    for place, point in zip(kept, made.facts["curve"], strict=False):
        assert not [path for path in place.iterdir() if path.name.startswith(".")]
        assert (place / "lowdim.json").exists() == (settings.get("factors") == FACTORS["factors"])
        run.model = load(place)
        close = 1e-2 if "optimizer" in settings else 1e-6
        assert run.judge()["loss"] == pytest.approx(point["loss"], rel=close)


def test_a_run_that_is_gone_on_with_keeps_the_same(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small.recipe(text, keep=2, steps=7, save_seconds=0.0)
    pretrain(recipe, out=tmp_path / "whole")
    small.interrupt(lambda: pretrain(recipe, out=tmp_path / "out"), 5, monkeypatch)
    pretrain(recipe, out=tmp_path / "out", resume=True)
    found, wanted = (
        {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}
        for out in (tmp_path / "out", tmp_path / "whole")
    )
    assert found == wanted and sum(name.startswith("checkpoints/step-") for name in found) > 9


def test_nothing_to_keep_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"keep=6 is no less than the run's 6 steps"):
        small.recipe("builtin", keep=6)
