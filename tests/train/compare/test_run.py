"""Runs: what is equal between the twins, what is written, and that a killed run ends as if nothing had happened."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.train.compare.conftest import made

from lowdim.core.errors import LowdimError, RecipeError
from lowdim.core.masks import Masks
from lowdim.data.classification import Dataset
from lowdim.runs.fingerprint import ResumeError
from lowdim.train.compare.member import Member, roles
from lowdim.train.compare.recipe import TrainingRecipe
from lowdim.train.compare.run import train
from lowdim.train.compare.store import Store

CPU = torch.device("cpu")


def recipe(**changes: Any) -> TrainingRecipe:
    given: dict[str, Any] = {
        "data": "digits",
        "net": {"name": "mlp", "hidden": [24, 16]},
        "training": {"name": "rigl", "every": 4},
        "sparsity": 0.8,
        "epochs": 3,
        "batch": 32,
        "device": "cpu",
    }
    return TrainingRecipe(**(given | changes))


def hashes(folder: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.iterdir())}


def test_the_twins_start_from_the_same_weights_and_see_the_same_batches(data: Dataset) -> None:
    dense, static, sparse = (Member(role, recipe(), data, CPU) for role in ("dense", "static", "sparse"))
    for name, weight in dense.net.state_dict().items():
        for other in (static, sparse):
            kept = other.net.state_dict()[name]
            assert torch.equal(kept, torch.where(kept != 0, weight, 0)), name
    assert torch.equal(dense._order(1), sparse._order(1))
    assert not torch.equal(dense._order(0), dense._order(1))


def test_the_static_twin_is_random_erk_whatever_the_run_does(data: Dataset) -> None:
    static = Member("static", recipe(allocation="uniform", training="set"), data, CPU)
    reference = Member("sparse", recipe(training="static"), data, CPU)
    assert static.sparsity is not None
    assert reference.sparsity is not None
    assert static.sparsity.masks.hash() == reference.sparsity.masks.hash()


@pytest.mark.parametrize("allocation", ["alpha", "owl"])
def test_an_allocation_that_reads_the_network_changes_the_masks(allocation: str) -> None:
    data = made()
    data.train.x[:, :, 0, :2] *= 30  # fresh weights have no outliers of their own
    net = {"name": "mlp", "hidden": [24, 16]}
    plain, read = (Member("sparse", recipe(net=net, allocation=name), data, CPU) for name in ("uniform", allocation))
    assert plain.sparsity is not None
    assert read.sparsity is not None
    assert read.sparsity.masks.hash() != plain.sparsity.masks.hash()
    totals = [sum(int(mask.sum()) for mask in m.sparsity.masks.values()) for m in (plain, read) if m.sparsity]
    assert totals[0] == totals[1]


def test_a_run_that_is_the_static_twin_trains_it_once() -> None:
    assert roles(recipe(training="static")) == ["dense", "small", "sparse"]
    assert roles(recipe(training="static", allocation="uniform")) == ["dense", "small", "static", "sparse"]
    assert roles(recipe(twins=[])) == ["sparse"]


def test_the_small_twin_has_at_most_the_parameters_that_are_kept(data: Dataset) -> None:
    small, sparse = (Member(role, recipe(), data, CPU) for role in ("small", "sparse"))
    assert sparse.sparsity is not None
    kept = sum(int((p != 0).sum()) if p.ndim > 1 else p.numel() for p in sparse.net.parameters())
    count = sum(p.numel() for p in small.net.parameters())
    assert 0.8 * kept < count <= kept


def test_learning_rates_by_hand(data: Dataset) -> None:
    member = Member("dense", recipe(optimizer={"name": "sgd", "lr": 0.4, "schedule": "step"}), data, CPU)
    member.steps = 100
    assert [round(member.factor(step), 6) for step in (0, 49, 50, 74, 75, 99)] == [1, 1, 0.1, 0.1, 0.01, 0.01]
    cosine = Member("dense", recipe(optimizer={"lr": 0.4}), data, CPU)
    cosine.steps = 100
    assert [round(cosine.factor(step), 6) for step in (0, 50, 100)] == [1.0, 0.5, 0.0]
    cosine.train_epoch()
    last = cosine.loop.step - 1
    assert cosine.optimizer.param_groups[0]["lr"] == 0.4 * cosine.factor(last)


def test_everything_learns_and_the_sparse_network_is_exactly_sparse(data: Dataset) -> None:
    result = train(recipe(epochs=30), data=data)
    for role in ("dense", "static", "sparse"):
        facts = result.member(role)  # type: ignore[arg-type]
        assert facts["test"]["accuracy"] > 0.7
        assert facts["curve"][-1]["loss"] < facts["curve"][0]["loss"]
    sparse = result.member("sparse")
    size = sum(layer["size"] for layer in sparse["layers"])
    assert sum(layer["kept"] for layer in sparse["layers"]) == round(0.2 * size)
    assert sparse["explored"] > result.member("static")["explored"] == pytest.approx(0.2, abs=1 / size)
    assert [entry["name"] for entry in sparse["dense"]] == ["head.weight"]


def test_the_same_recipe_gives_the_same_facts_and_another_seed_does_not(data: Dataset) -> None:
    one, two, other = (train(recipe(epochs=1, seed=seed), data=data).facts for seed in (0, 0, 1))
    assert json.dumps(one) == json.dumps(two)
    assert one["members"]["sparse"]["masks"] != other["members"]["sparse"]["masks"]


def test_the_global_generator_is_left_alone(data: Dataset) -> None:
    state = torch.get_rng_state()
    train(recipe(epochs=1), data=data)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"name": "granet", "every": 50}}, "would never prune"),
        ({"training": {"name": "rigl", "every": 50}}, "would never move a mask"),
        ({"training": {"name": "chase", "channel_every": 1000}}, "channel_every is 1000"),
        (
            {"training": {"name": "chase", "channels": 0.0, "every": 1000}},
            "Chase would never move a mask: every is 1000",
        ),
        ({"training": "granet", "pattern": "2:4", "sparsity": 0.5}, "changes how much is kept"),
        ({"pattern": "2:4"}, "sparsity"),
        ({"pattern": "7x7"}, "blocks of 7"),
        ({"device": "cuda"}, "torch finds no GPU"),
        (
            {
                "training": {"name": "chase", "every": 2, "channel_every": 2},
                "net": {"name": "mlp", "hidden": [24]},
                "include": "head*",
            },
            "no sparse layer whose channels can be removed",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_before_a_twin_is_trained(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: Any, message: str
) -> None:
    trained: list[str] = []
    monkeypatch.setattr(Member, "train_epoch", lambda self, *_: trained.append(self.role))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LowdimError, match=message):
        train(recipe(**changes), data=data, out=tmp_path / "out")
    assert not trained


def test_the_interval_of_a_short_run_is_recorded(data: Dataset) -> None:
    result = train(recipe(training="rigl", twins="none"), data=data)
    assert result.facts["recipe"]["training"]["every"] == 1
    assert len(result.member("sparse")["updates"]) > 10


def test_what_is_written_can_be_read(data: Dataset, tmp_path: Path) -> None:
    result = train(recipe(), data=data, out=tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.run.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "dense.safetensors",
        "small.safetensors",
        "sparse.masks.safetensors",
        "sparse.safetensors",
        "static.masks.safetensors",
        "static.safetensors",
        "training.json",
    ]
    assert json.loads((tmp_path / "out" / "training.json").read_text()) == json.loads(json.dumps(result.facts))
    masks = Masks.load(tmp_path / "out" / "sparse.masks.safetensors")
    weights = load_file(tmp_path / "out" / "sparse.safetensors")
    assert masks.hash() == result.member("sparse")["masks"]
    for name in masks:
        assert bool((weights[name][~masks[name]] == 0).all())
    assert TrainingRecipe(**result.facts["recipe"]) == recipe()


class Killed(BaseException):
    pass


RIGL, GRANET = {"name": "rigl", "every": 4}, {"name": "granet", "every": 3}


@pytest.mark.parametrize(
    ("training", "after"),  # two epochs and the end of each network: 1 is in the first, 7 in the last
    [(RIGL, 1), (GRANET, 7), ("set", 4), (RIGL, 8)],
)
def test_a_killed_run_goes_on_to_the_same_bytes(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training: Any, after: int
) -> None:
    asked = recipe(training=training, twins=["dense", "static"], optimizer="adamw")
    train(asked, data=data, out=tmp_path / "whole")
    put, left = Store.put, [after]

    def dying(self: Store, name: str, content: Any) -> None:
        put(self, name, content)
        left[0] -= 1
        if not left[0]:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put", dying)
        with pytest.raises(Killed):
            train(asked, data=data, out=tmp_path / "broken")
    assert not (tmp_path / "broken").exists()
    train(asked, data=data, out=tmp_path / "broken", resume=True)
    assert hashes(tmp_path / "broken") == hashes(tmp_path / "whole")


def test_another_recipe_does_not_go_on(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dying(self: Store, name: str, content: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put", dying)
        with pytest.raises(Killed):
            train(recipe(), data=data, out=tmp_path / "out")
    with pytest.raises(ResumeError, match=r"the unfinished run .* differs in recipe\.seed\. Repeat its command"):
        train(recipe(seed=1), data=data, out=tmp_path / "out", resume=True)
    with pytest.raises(LowdimError, match="unfinished run"):
        train(recipe(), data=data, out=tmp_path / "out")
    train(recipe(seed=1), data=data, out=tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "training.json").exists()


def test_a_network_of_each_kind_trains() -> None:
    from tests.train.compare.conftest import made

    for net in ("mlp", "conv"):
        facts = train(recipe(net=net, epochs=2, twins=["dense"]), data=made(side=8)).facts
        assert len(facts["members"]["sparse"]["curve"]) == 2


def test_the_truly_sparse_executor_moves_the_same_masks(data: Dataset) -> None:
    masked, csr = (
        train(recipe(executor=executor, epochs=2, twins="static"), data=data) for executor in ("masked", "csr")
    )
    for role in ("static", "sparse"):
        one, two = (result.member(role) for result in (masked, csr))  # type: ignore[arg-type]
        assert [u["kept"] for u in one["updates"]] == [u["kept"] for u in two["updates"]]
        assert one["masks"] == two["masks"]
        assert (one["parameters"], one["kept"]) == (two["parameters"], two["kept"])
        assert one["costs"] == two["costs"]
        assert one["curve"][-1]["loss"] == pytest.approx(two["curve"][-1]["loss"], rel=1e-4)
    assert csr.facts["execution"] == "csr"


def test_truly_sparse_runs_go_on_too(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = recipe(executor="csr", twins=[])
    train(asked, data=data, out=tmp_path / "whole")
    put = Store.put

    def dying(self: Store, name: str, content: Any) -> None:
        put(self, name, content)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put", dying)
        with pytest.raises(Killed):
            train(asked, data=data, out=tmp_path / "broken")
    train(asked, data=data, out=tmp_path / "broken", resume=True)
    assert hashes(tmp_path / "broken") == hashes(tmp_path / "whole")


@pytest.mark.parametrize(
    ("allocation", "executor"),
    [("erk-plus", "csr"), ("er-plus", "masked"), ("er-plus", "csr"), ("uniform-plus", "masked")],
)
def test_an_allocation_that_counts_the_classifier_trains_it(data: Dataset, allocation: str, executor: str) -> None:
    sparsity = 0.05 if allocation == "uniform-plus" else 0.5
    asked = recipe(allocation=allocation, executor=executor, epochs=1, twins=["static"], sparsity=sparsity)
    result = train(asked, data=data)
    found = {role: result.member(role) for role in ("static", "sparse")}  # type: ignore[arg-type]
    for member in found.values():
        assert [layer["name"] for layer in member["layers"]] == ["hidden1.weight", "hidden2.weight", "head.weight"]
        assert member["dense"] == []
    assert found["static"]["kept"] == found["sparse"]["kept"]
    dense = "hidden1.weight" if allocation == "uniform-plus" else "head.weight"
    for layer in found["sparse"]["layers"]:
        assert (layer["kept"] == layer["size"]) == (layer["name"] == dense)


@pytest.mark.parametrize("executor", ["masked", "csr"])
def test_the_resampled_twin_has_the_numbers_of_the_sparse_network_at_its_end(data: Dataset, executor: str) -> None:
    moving = {"name": "granet", "every": 2, "until": 0.5} if executor == "masked" else {"name": "rigl", "every": 4}
    asked = recipe(twins=["resampled"], training=moving, epochs=2, executor=executor)
    assert roles(asked) == ["sparse", "resampled"]
    result = train(asked, data=data)
    ours, theirs = (result.member(role) for role in ("sparse", "resampled"))  # type: ignore[arg-type]
    kept = [{layer["name"]: layer["kept"] for layer in member["layers"]} for member in (ours, theirs)]
    assert kept[0] == kept[1]
    assert ours["masks"] != theirs["masks"]
    assert theirs["updates"] == []
    assert 0.0 <= ours["test"]["unlike_auroc"] <= 1.0
    assert roles(recipe(twins=["resampled"], training="static")) == ["sparse"]
    assert roles(recipe(twins=["resampled"], training="static", initialisation="snip")) == ["sparse", "resampled"]
    with pytest.raises(RecipeError, match="'resampled' draws single weights"):
        recipe(twins=["resampled"], pattern="2:4")
