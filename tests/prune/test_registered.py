"""A method that is registered from outside runs, is recorded, survives a resumed run, and checks its settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests.prune import tiny
from torch import Tensor

from lowdim.core import registry
from lowdim.core.allocation import Allocation, AllocationResult, LayerInfo, Scan
from lowdim.core.choices import Choices
from lowdim.core.errors import RecipeError, clash
from lowdim.core.pattern import Pattern
from lowdim.core.score import ColumnScore, GradientScore
from lowdim.core.settings import count, share, within
from lowdim.core.statistics import InputStatistics
from lowdim.core.topk import keep_top
from lowdim.models.disk import manifest
from lowdim.prune import run
from lowdim.prune.api import prune
from lowdim.prune.bench import Bench, Work
from lowdim.prune.refine.base import Refine
from lowdim.prune.repair.base import Repair
from lowdim.report.build import build


@dataclass(frozen=True)
class Loudness(ColumnScore):
    """|W| times a power of the mean square of its input."""

    needs: ClassVar[frozenset[str]] = frozenset({"square"})
    power: float = within(2.0, above=0)

    @property
    def default_group(self) -> str:
        return "matrix"

    def column_scale(self, stats: InputStatistics | None) -> Tensor:
        return self._required(stats).mean_square() ** self.power


@dataclass(frozen=True)
class Slope(GradientScore):
    """|G|, the weight itself counting a share."""

    weight: float = share(0.0)

    def worth(self, weight: Tensor, gradient: Tensor) -> Tensor:
        return gradient.abs() * weight.abs() ** self.weight


@dataclass(frozen=True)
class Rows(Pattern):
    """Runs of neighbouring rows."""

    height: int = count(4)

    def __str__(self) -> str:
        return "rows"

    @property
    def unit_size(self) -> int:
        return self.height

    def check_shape(self, name: str, rows: int, cols: int) -> None:
        assert rows % self.height == 0

    def mask(self, scores: Tensor, keep: int) -> Tensor:
        runs = scores.reshape(-1, self.height, scores.shape[1]).sum(1)
        return keep_top(runs, keep // self.height).repeat_interleave(self.height, 0)


@dataclass(frozen=True)
class Doubling(Repair):
    """Kept weights grow."""

    factor: float = within(2.0, above=0, most=4)

    def check(self, recipe: Choices) -> None:
        if recipe.pattern.swap_span is None:
            raise clash("repair=doubling", f"pattern={recipe.pattern}", "units stay", "Choose repair=none")

    def apply(self, bench: Bench) -> None:
        for work in bench.works:
            work.result = self.factor * work.dense * work.kept
            work.notes.append("doubled")


@dataclass(frozen=True)
class Mover(Refine):
    """Every row's mask moves to the right."""

    needs: ClassVar[frozenset[str]] = frozenset({"moments"})
    step: int = count(1)

    def apply(self, work: Work, scores: Tensor, inputs: InputStatistics) -> Tensor:
        assert inputs.total.shape == (work.dense.shape[1],)
        return work.kept.roll(self.step, 1)


@dataclass(frozen=True)
class Halves(Allocation):
    """The layers of the first half of the model fall more than those of the second."""

    gap: float = share(0.1)

    def allocate(self, layers: Sequence[LayerInfo], sparsity: float, scan: Scan) -> AllocationResult:
        first = sum(info.numel for info in layers if info.block == 0)
        rest = sum(info.numel for info in layers) - first
        low = sparsity - self.gap * first / rest
        shares = {info.name: sparsity + self.gap if info.block == 0 else low for info in layers}
        return AllocationResult(shares, {info.name: float(info.block) for info in layers})

    def describe(self, values: Any, layers: Sequence[LayerInfo], blocks: int) -> dict[str, Any]:
        return {"half": dict(values)}


KINDS: dict[str, tuple[str, type[Any]]] = {
    "loudness": ("score", Loudness),
    "slope": ("score", Slope),
    "rows": ("pattern", Rows),
    "doubling": ("repair", Doubling),
    "mover": ("refine", Mover),
    "halves": ("allocation", Halves),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "loudness": {"power": 3.0},
    "slope": {"weight": 0.5},
    "rows": {"height": 8},
    "doubling": {"factor": 3.0},
    "mover": {"step": 2},
    "halves": {"gap": 0.2},
}
WRONG = [
    ("loudness", "power", 0.0, "score.power must be above 0; got 0.0"),
    ("slope", "weight", 1.5, "score.weight must be between 0 and 1; got 1.5"),
    ("rows", "height", 0, "pattern.height must be a whole number of at least 1; got 0"),
    ("doubling", "factor", 5.0, "repair.factor must be above 0 and at most 4; got 5.0"),
    ("mover", "step", 0, "refine.step must be a whole number of at least 1; got 0"),
    ("halves", "gap", -0.1, "allocation.gap must be between 0 and 1; got -0.1"),
]


class Stopped(Exception):
    pass


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the methods of this file for the time of one test."""
    for kind in registry.KINDS:
        registry.names(kind)
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))
    for name, (kind, cls) in KINDS.items():
        registry.register(kind, name, f"{__name__}:{cls.__name__}", title=f"The {name} of a test")


def recipe(name: str, **settings: Any) -> Any:
    return tiny.recipe(method="magnitude") if not name else tiny.recipe(**_words(name, settings))


def _words(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    kind = KINDS[name][0]
    return {"method": "magnitude", kind: {"name": name, **settings}}


@pytest.mark.parametrize("name", KINDS)
def test_it_decides_the_bytes_and_is_recorded(name: str, saved: Callable[[str], Path], tmp_path: Path) -> None:
    source, kind = str(saved("llama")), KINDS[name][0]
    written = {}
    for label, chosen in {
        "with": recipe(name),
        "set": recipe(name, **SETTINGS[name]),
        "without": recipe(""),
    }.items():
        prune(source, chosen, calibration=tiny.tokens(), out=tmp_path / label)
        written[label] = tiny.digest(tmp_path / label)["model.safetensors"]
    assert len(set(written.values())) == 3
    record = manifest.read(tmp_path / "set").to_dict()
    assert record["recipe"][kind] == {"name": name, **SETTINGS[name]}
    assert record["sparsity"]["prunable"] == pytest.approx(0.6, abs=1e-2)
    assert {"doubled"} == {note["what"] for note in record["fallbacks"]} if name == "doubling" else True
    assert ("half" in record["probes"]) == (name == "halves")
    assert name in build(tmp_path / "set").read_text()


@pytest.mark.parametrize("name", KINDS)
def test_a_stopped_run_is_resumed_to_the_same_bytes(
    name: str, saved: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, real = str(saved("llama")), run.prune_block

    def stop(engine: Any, block: Any, *rest: Any) -> Any:
        if block.index == 1:
            raise Stopped
        return real(engine, block, *rest)

    prune(source, recipe(name), calibration=tiny.tokens(), out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(run, "prune_block", stop)
        with pytest.raises(Stopped):
            prune(source, recipe(name), calibration=tiny.tokens(), out=tmp_path / "out")
    prune(source, recipe(name), calibration=tiny.tokens(), out=tmp_path / "out", resume=True)
    assert tiny.digest(tmp_path / "out") == tiny.digest(tmp_path / "whole")


@pytest.mark.parametrize(("name", "key", "value", "sentence"), WRONG)
def test_a_setting_out_of_range_is_refused_in_the_shared_sentence(
    name: str, key: str, value: float, sentence: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(name, **{key: value})
    assert str(caught.value) == sentence


def test_its_own_rule_refuses_other_choices() -> None:
    with pytest.raises(RecipeError, match=r"repair=doubling does not go with pattern=1x8: units stay\."):
        tiny.recipe(method="magnitude", repair="doubling", pattern="1x8")
    with pytest.raises(RecipeError, match="refine=dsnot does not go with pattern=rows"):
        tiny.recipe(method="magnitude", refine="dsnot", pattern="rows")


def test_all_of_them_go_together(saved: Callable[[str], Path], tmp_path: Path) -> None:
    words = {kind: name for name, (kind, _) in KINDS.items() if name not in ("rows", "loudness")}
    result = prune(str(saved("llama")), tiny.recipe(**words), calibration=tiny.tokens(), out=tmp_path / "out")
    assert {kind: result.manifest["recipe"][kind]["name"] for kind in words} == words
