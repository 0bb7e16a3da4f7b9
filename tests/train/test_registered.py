"""A method of training registered from outside runs from a recipe, survives a kill, and checks its settings."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.compare.conftest import made
from torch import Tensor
from typer.testing import CliRunner

from lowdim.cli import app
from lowdim.core import registry
from lowdim.core.allocation.by_shape import ByShape, Shape, spread
from lowdim.core.errors import RecipeError
from lowdim.core.recipe import families
from lowdim.core.settings import Settings, count, share, within
from lowdim.core.transition import drop_lowest, whole
from lowdim.train.compare.recipe import TrainingRecipe
from lowdim.train.compare.run import train
from lowdim.train.compare.store import Store
from lowdim.train.initial.base import Scored, Start
from lowdim.train.preference.base import Preference
from lowdim.train.sparse.exchange import exchange
from lowdim.train.sparse.method import Periodic
from lowdim.train.sparse.moment import Moment


@dataclass(frozen=True)
class Topple(Periodic):
    """The largest weights go, others grow at random."""

    drop: float = share(0.2)

    def update(self, moment: Moment) -> None:
        for layer in moment.layers:
            keep = drop_lowest(-layer.values().abs(), whole(self.drop * layer.kept))
            exchange(moment, layer, keep, "random")


@dataclass(frozen=True)
class Humble(Scored):
    """The smallest weights are kept."""

    power: float = within(1.0, above=0)

    def scores(self, start: Start) -> dict[str, Tensor]:
        return {name: -(weight.detach().abs() ** self.power) for name, weight in start.weights.items()}


@dataclass(frozen=True)
class Tall(ByShape):
    """Layers of few outputs are denser."""

    rows: int = count(4)

    def shares(self, shapes: Mapping[str, Shape], sparsity: float) -> dict[str, float]:
        return spread(shapes, 1.0 - sparsity, lambda shape: max(self.rows, shape[0]) ** -2.0)


@dataclass(frozen=True)
class Fullest(Settings):
    """The layer that keeps the most."""

    least: int = count(0, least=0)

    def __call__(self, masks: Mapping[str, Tensor]) -> str:
        return max(masks, key=lambda name: max(self.least, int(masks[name].sum())))


@dataclass(frozen=True)
class Shy(Preference):
    """Answers stay where they are."""

    reach: float = within(1.0, above=0)

    def losses(self, ratio: Tensor, tie: Tensor) -> Tensor:
        return (self.reach * ratio).square()


KINDS: dict[str, tuple[str, type[Any]]] = {
    "shy": ("preference", Shy),
    "topple": ("training", Topple),
    "humble": ("initialisation", Humble),
    "tall": ("allocation", Tall),
    "fullest": ("probe", Fullest),
}
RUN: dict[str, dict[str, Any]] = {
    "topple": {"training": {"name": "topple", "every": 3}},
    "humble": {"initialisation": "humble"},
    "tall": {"allocation": "tall"},
}
WRONG = [
    ("topple", "drop", 1.5, "training.drop must be between 0 and 1; got 1.5"),
    ("humble", "power", 0.0, "initialisation.power must be above 0; got 0.0"),
    ("tall", "rows", 0, "allocation.rows must be a whole number of at least 1; got 0"),
    ("shy", "reach", 0.0, "preference.reach must be above 0; got 0.0"),
    ("fullest", "least", -1, "probe.least must be a whole number of at least 0; got -1"),
]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the methods of this file for the time of one test."""
    registry.methods()
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))
    for name, (kind, cls) in KINDS.items():
        registry.register(kind, name, f"{__name__}:{cls.__name__}", title=f"The {name} of a test")


def recipe(**changes: Any) -> TrainingRecipe:
    given: dict[str, Any] = {
        "data": "digits",
        "net": {"name": "mlp", "hidden": [24, 16]},
        "training": "static",
        "sparsity": 0.8,
        "epochs": 2,
        "batch": 32,
        "twins": [],
        "device": "cpu",
    }
    return TrainingRecipe(**(given | changes))


def written(out: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(out.iterdir())}


class Killed(BaseException):
    pass


@pytest.mark.parametrize("name", RUN)
def test_it_decides_the_bytes_and_a_killed_run_comes_to_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, put = made(), Store.put
    train(recipe(), data=data, out=tmp_path / "without")
    result = train(recipe(**RUN[name]), data=data, out=tmp_path / "whole")
    without, whole = written(tmp_path / "without"), written(tmp_path / "whole")
    for file in ("sparse.safetensors", "sparse.masks.safetensors", "training.json"):
        assert without[file] != whole[file]
    assert name in str(result.facts["recipe"][KINDS[name][0]])

    def dying(self: Store, file: str, content: Any) -> None:
        put(self, file, content)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put", dying)
        with pytest.raises(Killed):
            train(recipe(**RUN[name]), data=data, out=tmp_path / "killed")
    train(recipe(**RUN[name]), data=data, out=tmp_path / "killed", resume=True)
    assert written(tmp_path / "killed") == whole


@pytest.mark.parametrize("name", KINDS)
def test_it_is_listed(name: str) -> None:
    done = CliRunner().invoke(app, ["methods", "--json", "--kind", KINDS[name][0]])
    assert f'"{name}"' in done.output


@pytest.mark.parametrize(("name", "key", "value", "sentence"), WRONG)
def test_a_setting_out_of_range_is_refused_in_the_shared_sentence(
    name: str, key: str, value: float, sentence: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        families.build(KINDS[name][0], {"name": name, key: value})
    assert str(caught.value) == sentence


def test_a_probe_is_called() -> None:
    probe = registry.find("probe", "fullest").load()()
    assert probe({"a": torch.tensor([True, False]), "b": torch.tensor([True, True])}) == "b"
