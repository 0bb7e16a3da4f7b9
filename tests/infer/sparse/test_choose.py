"""The form of a sparse layer: forced, measured, remembered, and what never happens."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import lowdim
from lowdim.core import native
from lowdim.core.errors import LowdimError
from lowdim.infer.sparse import choose
from lowdim.infer.sparse.matrix import Matrix

pytestmark = pytest.mark.skipif(
    not native.runtime_info().levels, reason="lowdim was installed without compiled kernels"
)
TIMES = {"packed": 2.0, "8:16": 1.0, "dense": 3.0}


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """A process that has chosen nothing yet, in an empty cache directory; every layer is worth measuring."""
    monkeypatch.delenv("LOWDIM_FORM")
    monkeypatch.setenv("LOWDIM_CACHE", str(tmp_path))
    calls: list[str] = []

    def measure(kind: str, *_: Any) -> dict[str, float]:
        calls.append(kind)
        return dict(TIMES)

    monkeypatch.setattr(choose, "SMALLEST", 0)
    monkeypatch.setattr(choose, "measure", measure)
    for name, fresh in (("_known", {}), ("_read", []), ("_left", [choose.SECONDS])):
        monkeypatch.setattr(choose, name, fresh)
    before = dict(native.chosen)
    native.chosen.clear()
    yield calls
    native.chosen.clear()
    native.chosen.update(before)


def half(kind: str = "int8", few: bool = True, most: int = 8) -> Matrix:
    """A packed matrix of which half is zero, in 8:16 if `few`; or in another N:16."""
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    rank = weight.view(32, 4, 16).abs().argsort(2).argsort(2).view(32, 64)
    return Matrix.from_dense(weight * (rank < most) if few else weight * (torch.arange(64) < 32), kind)


def times(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    monkeypatch.setattr(choose, "measure", lambda *_: {"packed": 2.0, **seconds})


@pytest.mark.parametrize("form", choose.FORMS)
def test_a_form_is_forced_where_it_is_possible(form: str, monkeypatch: pytest.MonkeyPatch, measured: list[str]) -> None:
    monkeypatch.setenv("LOWDIM_FORM", form)
    matrix, other = half(), half(few=False)
    possible = "packed" if form == "4:16" else form
    assert choose.settle(matrix, matrix.dense).form == possible
    assert choose.settle(matrix).form == ("packed" if form == "dense" else possible)
    assert choose.settle(other, other.dense).form == ("packed" if form in ("8:16", "4:16") else form)
    fewer = half(most=4)
    assert choose.settle(fewer, fewer.dense).form == form
    assert not measured


def test_the_fewest_values_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    times(monkeypatch, **{"8:16": 1.5, "4:16": 1.0, "dense": 3.0})
    assert [choose.settle(half(kind, most=4)).form for kind in ("int8", "int4")] == ["4:16"] * 2
    assert choose.settle(half()).form == "8:16"


def test_a_form_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWDIM_FORM", "2:4")
    with pytest.raises(LowdimError, match="LOWDIM_FORM='2:4' is no form of a layer"):
        choose.settle(half())


@pytest.mark.parametrize(
    ("seconds", "form"),
    [
        ({"8:16": 1.0, "dense": 3.0}, "8:16"),
        ({"8:16": 1.0, "dense": 0.9}, "dense"),
        ({"8:16": 1.99, "dense": 1.98}, "packed"),
        ({"8:16": 3.0, "dense": 3.0}, "packed"),
    ],
)
def test_the_fastest_is_taken_and_noted(seconds: dict[str, float], form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    times(monkeypatch, **seconds)
    matrix = half()
    assert choose.settle(matrix, matrix.dense).form == form
    [noted] = lowdim.runtime_info().forms
    assert noted.startswith(f"1 × int8, 64 columns, 50% zeros, 8:16: {form}: packed 2000000 µs, 8:16 ")


def test_what_is_not_possible_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    times(monkeypatch, **{"8:16": 1.0, "dense": 0.5})
    matrix = half(few=False)
    assert choose.settle(matrix).form == "packed"
    assert lowdim.runtime_info().forms[0].endswith("dense 500000 µs (not possible)")
    monkeypatch.setattr(choose, "free_memory", lambda: 100)
    assert choose.settle(matrix, matrix.dense).form == "packed"
    assert choose.settle(half(), half().dense).form == "8:16"


def test_times_are_remembered(measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert [choose.settle(half(kind)).form for kind in ("int8", "int4", "int8")] == ["8:16"] * 3
    assert measured == ["int8", "int4"]
    monkeypatch.setattr(choose, "_known", {})
    monkeypatch.setattr(choose, "_read", [])
    assert choose.settle(half()).form == "8:16"
    assert measured == ["int8", "int4"]


def spoil_text(path: Path) -> None:
    path.write_text("{")


def spoil(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def spoiled(path: Path) -> None:
        held = json.loads(path.read_text())
        change(held)
        path.write_text(json.dumps(held))

    return spoiled


@pytest.mark.parametrize(
    "damage",
    [
        spoil_text,
        spoil(lambda held: held["about"].update(processor="of another machine")),
        spoil(lambda held: held["about"].update(lowdim="0.0.1")),
        spoil(lambda held: held.update(seconds=[1])),
        spoil(lambda held: [one.update(packed=-1.0) for one in held["seconds"].values()]),
        spoil(lambda held: [one.update(packed="fast") for one in held["seconds"].values()]),
        spoil(lambda held: [one.update({"9:16": 0.1}) for one in held["seconds"].values()]),
        spoil(lambda held: [one.pop("packed") for one in held["seconds"].values()]),
        lambda path: (path.unlink(), path.mkdir()),
    ],
)
def test_a_stale_foreign_or_damaged_file_is_ignored(
    damage: Callable[[Path], object], measured: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    choose.settle(half())
    [path] = (tmp_path / "kernels").iterdir()
    damage(path)
    monkeypatch.setattr(choose, "_known", {})
    monkeypatch.setattr(choose, "_read", [])
    assert choose.settle(half()).form == "8:16"
    assert measured == ["int8", "int8"]


def test_a_directory_that_cannot_be_written_is_done_without(
    measured: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LOWDIM_CACHE", str(tmp_path / "file"))
    assert choose.settle(half()).form == "8:16"
    assert measured == ["int8"]


def test_time_that_is_up_leaves_the_rule(measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "_left", [0.0])
    monkeypatch.setattr(choose, "rule", lambda kind: ("8:16", "dense"))
    matrix = half(few=False)
    assert choose.settle(matrix, matrix.dense).form == "dense"
    assert choose.settle(matrix).form == "packed"
    assert not measured
    assert "packed: not measured" in lowdim.runtime_info().forms[1]


def test_small_layers_are_not_measured(measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "SMALLEST", 32 * 64 + 1)
    made = [choose.settle(half()) for _ in range(2)]
    assert not measured
    assert lowdim.runtime_info().forms == (f"2 × int8: {made[0].form}: not measured below 2,049 weights",)


@pytest.mark.parametrize("kind", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("few", [0, 4, 8])
def test_samples_are_what_they_stand_for(kind: str, few: int) -> None:
    share = 0.75 if few == 4 else 0.5
    matrix = choose.sample(kind, 512, 0 if kind == "bf16" else 64, share, few)
    assert matrix.form == "packed" and abs(matrix.sparsity - share) < 0.01
    records = matrix.in_records()
    assert (0 if records is None else records.kept) == few
    assert torch.equal(matrix.dense().unpack(), matrix.unpack())
