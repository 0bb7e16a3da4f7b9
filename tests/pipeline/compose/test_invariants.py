"""Masks, grids and ranks, read back from disk and put right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.results import saved
from tests.pipeline.compose.conftest import Made, weights
from tests.turns import turns

import lowdim
from lowdim.core.errors import CheckpointError, LowdimError, RecipeError
from lowdim.core.progress import Silent
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.convert import convert
from lowdim.models.disk.rewrite import rewrite
from lowdim.models.disk.source import resolve
from lowdim.nn.lowrank import LowRankLinear
from lowdim.pipeline.compose import invariants
from lowdim.pipeline.compose.invariants import truncated
from lowdim.pipeline.compose.stage import GRID, MASK, RANK, Work
from lowdim.pipeline.compose.stages.factorise import Factorise
from lowdim.pipeline.compose.stages.prune import Prune

NAME = "model.layers.1.mlp.up_proj.weight"


def pruned(composed: Made, tmp_path: Path, *more: Any, sparsity: float = 0.5) -> Path:
    composed({"prune": {"sparsity": sparsity, "method": "magnitude"}}, *more)
    return tmp_path / "out/model"


def kinds(place: Path) -> frozenset[str]:
    source = resolve(str(place))
    return invariants.kinds_of(source, invariants.ranks_of(source))


def test_one_weight_off_its_mask_is_found_and_put_right(composed: Made, tmp_path: Path) -> None:
    place = pruned(composed, tmp_path)
    held = invariants.read(resolve(str(place)), frozenset({MASK}), {})
    weight = Checkpoint(place).read(NAME)
    spot = tuple((weight == 0).nonzero()[0].tolist())
    moved = weight.clone()
    moved[spot] = 1.0
    rewrite(resolve(str(place)), tmp_path / "moved", {NAME: moved})
    [breach], right = invariants.verify(resolve(str(tmp_path / "moved")), held)
    assert (breach.kind, breach.count, breach.matrices) == (MASK, 1, 1)
    assert list(right) == [NAME] and torch.equal(right[NAME], weight)  # type: ignore[arg-type]
    assert invariants.verify(resolve(str(place)), held) == ([], {})


@pytest.mark.parametrize(("dtype", "zeros"), turns(["int8", "int4", "int3"], [False, True], of=2))
def test_a_weight_off_its_level_goes_back_to_the_nearest_it_had(
    composed: Made, tmp_path: Path, dtype: str, zeros: bool
) -> None:
    rounded = {"round": {"dtype": dtype}}
    place = pruned(composed, tmp_path, rounded) if zeros else tmp_path / "out/model"
    if not zeros:
        composed(rounded)
    source = resolve(str(place))
    held = invariants.read(source, frozenset({GRID}), {})
    assert invariants.verify(source, held) == ([], {})  # what is on its grid is left alone, bit by bit
    weight = Checkpoint(place).read(NAME)
    moved = weight * 1.001
    rewrite(source, tmp_path / "moved", {NAME: moved})
    [breach], right = invariants.verify(resolve(str(tmp_path / "moved")), held)
    assert breach.kind == GRID and breach.count == int((moved != weight).sum()) > 0
    rewrite(resolve(str(tmp_path / "moved")), tmp_path / "mended", right)
    assert torch.equal(weights(tmp_path / "mended")[NAME], weight)
    form = Checkpoint(tmp_path / "mended").form(NAME)
    assert form is not None and form.grid is not None and form.grid.name == dtype


@pytest.mark.parametrize("given", turns([False, True], of=2))
def test_zeros_of_less_than_a_hundredth_are_held(composed: Made, taught: str, given: bool, tmp_path: Path) -> None:
    """Of a model that an earlier stage pruned, and of one that was pruned before."""
    prune = {"prune": {"sparsity": 0.005, "method": "magnitude"}}
    before = weights(pruned(composed, tmp_path, sparsity=0.005))
    spots = {name: weight == 0 for name, weight in before.items() if "proj" in name}
    zeros = sum(int(spot.sum()) for spot in spots.values())
    chain, on = ([], {"on": tmp_path / "out/model"}) if given else ([prune], {})
    for masked in (True, False):
        edit = {"edit": {"edits": taught, "lr": 0.02, "steps": 3, "masked": masked}}
        found = composed(*chain, edit, out=f"edited-{masked}", **on)["stages"]["model"][-1]
        assert found["holds"]["mask"]["zeros"] == zeros > 0
        assert [each["kind"] for each in found["broken"]] == ([] if masked else [MASK])
        after = weights(tmp_path / f"edited-{masked}/model")
        assert all(bool((after[name][spot] == 0).all()) for name, spot in spots.items())
        assert not all(torch.equal(after[name], before[name]) for name in spots)
    with pytest.raises(LowdimError, match=r"edit broke .* pruned weights were no longer zero"):
        composed(*chain, edit, out="strict", verify="refuse", **on)


def test_codes_of_pruning_keep_their_mask_through_an_edit(composed: Made, taught: str, tmp_path: Path) -> None:
    prune = {"prune": {"sparsity": 0.5, "method": "magnitude", "quantize": "int4"}}
    composed(prune, {"edit": {"edits": taught, "lr": 0.02, "steps": 4}}, keep=True)
    before, after = weights(tmp_path / "out/model.1-prune"), weights(tmp_path / "out/model")
    assert torch.equal(before[NAME] == 0, after[NAME] == 0)
    form = Checkpoint(tmp_path / "out/model").form(NAME)
    assert form is not None and form.masked and form.grid is not None and form.grid.bits == 4


def test_the_nearest_matrix_of_a_rank_by_hand() -> None:
    matrix = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    assert torch.allclose(truncated(matrix, 1), torch.tensor([[3.0, 0.0], [0.0, 0.0]]), atol=1e-6)


def test_rank_holds_after_an_edit(composed: Made, taught: str, tmp_path: Path) -> None:
    found = composed({"factorise": {"keep": 0.25}}, {"edit": {"edits": taught, "lr": 0.02, "steps": 4}})
    [breach] = found["stages"]["model"][1]["broken"]
    assert breach["kind"] == RANK and breach["count"] == 21
    values = torch.linalg.svdvals(weights(tmp_path / "out/model")[NAME])
    assert float(values[8]) < 1e-5 < float(values[7])


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        (["factorise", "prune"], "prune after factorising"),
        (["prune", "factorise"], "factorise after pruning"),
        (["round", "factorise"], "factorise after rounding"),
        (["factorise", "round"], "round after factorising"),
        (["round", {"round": {"dtype": "int4"}}], "round after rounding"),
        (["round", "recover"], "recover after rounding moves the weights off their grid"),
        (["factorise", "recover"], "recover after factorising"),
        (["round", {"prune": {"sparsity": 0.5, "quantize": "int8"}}], "two grids cannot both hold"),
    ],
)
def test_a_stage_that_cannot_keep_what_holds_is_refused_before_work(
    composed: Made, stages: list[Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=said):
        composed(*stages)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("recover", "said"),
    [
        ({"minutes": 1e-4, "calibration": {"samples": 64, "context": 64}}, "minutes=0.0001 is too short"),
        ({"minutes": 1}, "context=512 is longer than the model's 128 positions"),
        ({"calibration": {"source": "/nowhere.txt"}}, "nowhere.txt"),
    ],
)
def test_what_recovery_would_refuse_is_refused_before_anything_is_pruned(
    composed: Made, recover: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Prune, "run", lambda *_: pytest.fail("the model was pruned"))
    prune = {"prune": {"sparsity": 0.5, "method": "magnitude"}}
    with pytest.raises(LowdimError, match=said):
        composed(prune, {"recover": recover}, orders="both")
    assert not list(tmp_path.glob("out*"))


def test_the_order_that_cannot_be_is_refused_too(composed: Made, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="prune after factorising"):
        composed({"recover": {"minutes": 1}}, "factorise", "prune", orders="both", pair=[1, 3])


def test_what_holds_of_the_model_that_is_given_counts(composed: Made, tmp_path: Path) -> None:
    place = pruned(composed, tmp_path)
    with pytest.raises(RecipeError, match="factorise after pruning"):
        composed("factorise", on=place, out="second")
    assert kinds(place) == {MASK}
    found = composed({"edit": {"edits": "builtin:edits", "steps": 1}}, on=place, out="third")
    assert found["stages"]["model"][0]["holds"]["mask"]["matrices"] == 21


def test_the_ranks_of_a_model_of_factors_that_is_given_count(composed: Made, taught: str, tmp_path: Path) -> None:
    stage = {"keep": 0.5, "rule": {"name": "uniform", "of_what": "weights"}, "stored": "factors"}
    ranks = composed({"factorise": stage}, out="factors")["stages"]["model"][0]["facts"]["ranks"]
    place = tmp_path / "factors/model"
    assert kinds(place) == {RANK}
    for word in ("prune", "round"):
        with pytest.raises(RecipeError, match=f"{word} after factorising"):
            composed(word, on=place, out="refused")
    edit = {"edit": {"edits": taught, "lr": 0.02, "steps": 4}}
    found = composed(edit, on=place, out="edited")["stages"]["model"][0]
    assert [each["kind"] for each in found["broken"]] == [RANK] and found["broken"][0]["of"] == len(ranks) == 21
    assert found["holds"]["rank"] == {"matrices": 21, "directions": sum(ranks.values())}
    values, rank = torch.linalg.svdvals(weights(tmp_path / "edited/model")[NAME]), ranks[NAME]
    assert float(values[rank]) < 1e-5 < float(values[rank - 1])
    with pytest.raises(LowdimError, match=r"edit broke .* more directions than they were left"):
        composed(edit, on=place, out="strict", verify="refuse")


def test_the_ranks_of_dense_matrices_that_are_given_count(composed: Made, taught: str, tmp_path: Path) -> None:
    """Of two compositions before, of factors made dense, and of a pre-training; not of a matrix that is full again."""
    ranks = composed({"factorise": {"keep": 0.25}}, out="first")["stages"]["model"][0]["facts"]["ranks"]
    edit = {"edit": {"edits": taught, "lr": 0.02, "steps": 4}}
    found = composed(edit, on=tmp_path / "first/model", out="second")["stages"]["model"][0]
    assert found["broken"][0]["of"] == 21 and found["holds"]["rank"]["directions"] == sum(ranks.values())
    place = tmp_path / "second/model"
    assert kinds(place) == {RANK} and invariants.ranks_of(resolve(str(place))) == ranks
    with pytest.raises(RecipeError, match="prune after factorising"):
        composed("prune", on=place, out="refused")
    full = Checkpoint(place).read(NAME)
    full = full + 0.1 * torch.randn(full.shape, generator=torch.Generator().manual_seed(0))
    rewrite(resolve(str(place)), tmp_path / "moved", {NAME: full})
    assert invariants.ranks_of(resolve(str(tmp_path / "moved"))) == {n: r for n, r in ranks.items() if n != NAME}
    thin = {"factorise": {"keep": 0.5, "rule": {"name": "uniform", "of_what": "weights"}, "stored": "factors"}}
    ranks = composed(thin, out="factors")["stages"]["model"][0]["facts"]["ranks"]
    dense = convert(tmp_path / "factors/model", tmp_path / "dense", "dense")
    assert Checkpoint(dense).ranks == {} and invariants.ranks_of(resolve(str(dense))) == ranks
    (dense / "lowdim.json").unlink()
    assert kinds(dense) == frozenset()
    said = {"rank": {"ranks": {name.removesuffix(".weight"): rank for name, rank in ranks.items()}}}
    (dense / "pretraining.json").write_text(json.dumps(said))
    assert invariants.ranks_of(resolve(str(dense))) == ranks


def test_a_second_factorising_leaves_the_lower_rank(composed: Made, tmp_path: Path) -> None:
    found = composed({"factorise": {"keep": 0.25}}, {"factorise": {"keep": 0.5}})["stages"]["model"]
    assert found[1]["broken"] == [] and found[1]["holds"]["rank"] == found[0]["holds"]["rank"]


def test_a_breach_is_refused_where_that_is_asked_for(composed: Made, taught: str, tmp_path: Path) -> None:
    prune = {"prune": {"sparsity": 0.5, "method": "magnitude"}}
    edit = {"edits": taught, "lr": 0.01, "steps": 2}
    with pytest.raises(LowdimError, match=r"edit broke .* pruned weights were no longer zero"):
        composed(prune, {"edit": {**edit, "masked": False}}, verify="refuse")
    composed(prune, {"edit": edit}, verify="refuse", out="other")


def test_a_model_of_factors_is_written_and_opened_as_one(composed: Made, tmp_path: Path) -> None:
    stage = {"keep": 0.5, "rule": {"name": "uniform", "of_what": "weights"}, "stored": "factors"}
    found = composed({"factorise": stage}, out="factors")
    [made] = found["stages"]["model"]
    ranks, size = made["facts"]["ranks"], made["facts"]["weights"]
    assert made["broken"] == [] and Checkpoint(tmp_path / "factors/model").ranks == ranks
    assert 0.4 < size["stored"] / size["before"] <= 0.5
    model = lowdim.load(tmp_path / "factors/model")
    assert {m.rank for m in model.modules() if isinstance(m, LowRankLinear)} == {*ranks.values()}
    dense = composed({"factorise": {**stage, "stored": "dense"}}, out="dense")["stages"]["model"][0]["facts"]
    assert dense["ranks"] == ranks and dense["weights"]["stored"] == size["before"]
    for name, weight in weights(tmp_path / "dense/model").items():
        assert torch.allclose(weight.float(), Checkpoint(tmp_path / "factors/model").read(name).float(), atol=1e-2)


def test_factors_that_would_be_larger_stay_a_matrix(composed: Made, tmp_path: Path) -> None:
    found = composed({"factorise": {"keep": 0.9, "stored": "factors"}}, out="large")
    assert found["stages"]["model"][0]["facts"]["ranks"] == {} == Checkpoint(tmp_path / "large/model").ranks


def test_layers_that_could_not_be_opened_as_factors_are_refused_before_any_work(tmp_path: Path) -> None:
    source = resolve(str(saved(tmp_path / "gpt2", "gpt2")))
    work = Work(source, tmp_path / "out", "gpt2", frozenset(), None, 0, "cpu", "auto", Silent(), print)
    with pytest.raises(CheckpointError, match="is the weight of no linear layer of GPT2LMHeadModel"):
        Factorise(stored="factors").run(work)
    assert not (tmp_path / "out").exists()
