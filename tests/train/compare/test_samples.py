"""Objectives, samplers, groups and ranks in runs: what composes, what is written, what is refused, and resuming."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.train.compare.grouped import biased, ranks, recipe
from torch import Tensor, nn

from lowdim.core import registry
from lowdim.core.errors import LowdimError, RecipeError
from lowdim.core.recipe import families
from lowdim.data.classification import load
from lowdim.data.errors import DataError
from lowdim.data.planted import sets
from lowdim.data.planted.told import truths
from lowdim.data.raw import Raw
from lowdim.report.training.facts import lines
from lowdim.report.training.groups import group_table, trained
from lowdim.report.training.page import render
from lowdim.runs.fingerprint import ResumeError
from lowdim.train.compare.recipe import TrainingRecipe
from lowdim.train.compare.run import TrainingResult, train
from lowdim.train.compare.store import Store
from lowdim.train.loop import Loop
from lowdim.train.objectives.base import Samples
from lowdim.train.samplers.aim import Aim
from lowdim.train.sparse.training import SparseTraining

DATA, GROUPS = biased()
RANKS = ranks(DATA, GROUPS)
OBJECTIVES, SAMPLERS = registry.names("objective"), registry.names("sampler")
UNBIASED = {"conflicting": 0.1, "unbiased": True}
MINOR = {"adversarial": {"steps": 2, "test_steps": 2}}


def run(asked: TrainingRecipe, out: Path | None = None, **more: Any) -> TrainingResult:
    return train(asked, data=DATA, groups=GROUPS, ranks=RANKS if ranked(asked) else None, out=out, **more)


def ranked(asked: TrainingRecipe) -> bool:
    return bool((asked.objective.requires | asked.sampler.requires) & {"ranks", "groups"})


def asks(**changes: Any) -> TrainingRecipe:
    """A recipe that names ranks where it trains with some, as ``lowdim rank`` would have written them."""
    plain = recipe(**changes)
    return recipe(ranks="given in Python", **changes) if ranked(plain) else plain


def written(out: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(out.iterdir())}


# ---------------------------------------------------------------- what composes


@pytest.mark.parametrize("executor", ["masked", "csr"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains_all_networks_with_both_executors(name: str, executor: str) -> None:
    facts = run(asks(objective={"name": name, **MINOR.get(name, {})}, executor=executor, epochs=2)).facts
    for member in facts["members"].values():
        assert 0 <= member["test"]["worst_group"] <= member["test"]["accuracy"] <= 1
        assert set(member["test"]["groups"]) == set(facts["data"]["groups"])
        assert "validation_worst_group" in member["curve"][-1]
    sparse = facts["members"]["sparse"]
    assert sum(layer["kept"] for layer in sparse["layers"]) == round(0.2 * sum(x["size"] for x in sparse["layers"]))
    assert ("robust_accuracy" in sparse["test"]) == (name == "adversarial")


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "pairs"])
def test_every_sampler_trains(name: str) -> None:
    facts = run(asks(sampler=name, objective="erm")).facts
    steps = facts["steps"]
    assert facts["members"]["sparse"]["curve"][-1]["step"] == steps["total"]
    per = steps["per_epoch"]
    assert steps["total"] == (sum(per) if isinstance(per, list) else 3 * per)


RECURRENT = ("selfish-rnn", "st-rnn")
"""Mask dynamics of an LSTM, which no recipe has; each kept share is known: all samples, then half of them."""


class Reader(nn.Module):
    """An LSTM that reads a picture row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.lstm(x.squeeze(1))[0][:, -1])
        return found


@pytest.mark.parametrize("name", registry.names("training"))
def test_data_pruning_goes_with_every_mask_dynamic(name: str) -> None:
    settings = registry.find("training", name).settings()
    method = {"name": name} | ({"every": 3} if "every" in settings else {})
    count = len(DATA.train.y)
    half = round(count / 2) / count
    pruning = {"name": "dynamic-pruning", "keep": 0.5}
    if name in RECURRENT:
        assert _reads(method, pruning) == [(1.0, 1.0), (half, 1.0), (half, 1.0)]
        return
    facts = run(recipe(sampler=pruning, training=method, twins=[])).facts
    assert facts["steps"]["alike"] is False
    assert facts["steps"]["per_epoch"] == [-(-count // 32), -(-(count // 2) // 32), -(-(count // 2) // 32)]
    curve = facts["members"]["sparse"]["curve"]
    assert [(point["samples_kept"], point["samples_explored"]) for point in curve] == [
        (1.0, 1.0),
        (half, 1.0),
        (half, 1.0),
    ]


def _reads(method: dict[str, Any], pruning: dict[str, Any]) -> list[tuple[float, float]]:
    net, found = Reader(), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    pattern = {"pattern": "gates:4"} if method["name"] == "st-rnn" else {}
    training = SparseTraining(
        net,
        optimizer,
        sparsity=0.5,
        include=["lstm.*"],
        method=families.build("training", method),
        total_steps=13,
        **pattern,
    )
    aim = Aim(families.build("objective", "erm"), families.build("sampler", pruning), Samples(*DATA.train, 3), epochs=3)
    loop = Loop(net, optimizer, loss=aim.loss, riders=[training, aim])
    for epoch in range(3):
        loop.run(aim.batches(epoch, net, 32))
        found.append((aim.report()["samples_kept"], aim.report()["samples_explored"]))
    assert training.history and abs(training.sparsity() - 0.5) < 0.01
    return found


def test_the_arithmetic_follows_what_is_trained_on() -> None:
    plain, half, hard = (
        run(recipe(twins=[], training="static", **more)).member("sparse")["costs"]["training_flops"]
        for more in (
            {},
            {"sampler": {"name": "dynamic-pruning", "keep": 0.5, "warm": 0}},
            {"objective": {"name": "adversarial", "steps": 3, "test_steps": 0}},
        )
    )
    assert half / plain == pytest.approx(0.5)
    assert hard / plain == pytest.approx(3.0)


# ---------------------------------------------------------------- groups and ranks


def test_worst_group_and_ranks_are_in_results_and_report() -> None:
    result = run(asks(objective="rest"))
    facts = result.facts
    groups = facts["data"]["groups"]
    assert sum(part["train"] for part in groups.values()) == len(DATA.train.y)
    assert sum(part["test"] for part in groups.values()) == len(DATA.test.y)
    assert facts["data"]["ranks"] == {
        "method": "made",
        "last": 3,
        "conflicting": int(GROUPS["train"].conflicting.sum()),
    }
    test = facts["members"]["sparse"]["test"]
    assert test["worst_group"] == min(test["groups"].values())
    table = group_table(facts)
    assert table is not None
    assert [row[0] for row in table.rows] == list(groups)
    assert sum(cell.worst for row in table.rows for cell in row[3]) >= 2
    assert lines(facts)[-1].worst == f"{100 * test['worst_group']:.1f}"
    page = render(facts, result.run)
    assert "Worst group, %" in page
    assert "objective rest" in page


def test_reweighting_by_labels_and_by_ranks_that_know_them_is_one_run() -> None:
    by_label = train(recipe(objective="rest"), data=DATA, groups=GROUPS)
    by_rank = train(asks(objective="rest"), data=DATA, groups=GROUPS, ranks=RANKS)
    assert by_label.facts["members"] == by_rank.facts["members"]


def test_rest_lifts_the_worst_group_over_erm() -> None:
    worst = {
        objective["name"]: run(recipe(objective=objective, epochs=20, training="static", twins=[])).member("sparse")[
            "test"
        ]["worst_group"]
        for objective in ({"name": "erm"}, {"name": "rest", "up": 8.0})
    }
    assert worst["rest"] > worst["erm"] + 0.3


@pytest.mark.parametrize("by", ["sampling", "loss"])
def test_rest_at_up_1_is_erm_under_rigl(by: str) -> None:
    plain, rest = (run(recipe(objective=each)) for each in ("erm", {"name": "rest", "up": 1.0, "by": by}))
    assert rest.facts["recipe"]["training"]["name"] == "rigl"
    assert rest.facts["members"] == plain.facts["members"]


@pytest.mark.parametrize("by", ["sampling", "loss"])
def test_rest_without_zeros_is_its_dense_twin(by: str) -> None:
    asked = recipe(objective={"name": "rest", "up": 8.0, "by": by}, sparsity=0.0, training="static")
    dense, sparse = (run(asked).member(role) for role in ("dense", "sparse"))
    assert sparse["test"] == dense["test"]
    assert [point | {"sparsity": 0.0, "explored": 1.0} for point in dense["curve"]] == sparse["curve"]


def test_the_first_network_of_jtt_is_in_the_facts_and_not_among_the_networks() -> None:
    result = run(recipe(objective={"name": "jtt", "epochs": 2}))
    early = result.facts["early"]
    assert early["epochs"] == 2
    assert 0 < early["wrong"] < early["samples"] == len(DATA.train.y)
    assert early["wrong_and_conflicting"] <= early["conflicting"] == int(GROUPS["train"].conflicting.sum())
    assert list(result.facts["members"]) == ["dense", "sparse"]
    assert result.run["before"][0]["name"] == "First network"
    assert "The first network got" in render(result.facts, result.run)


def test_data_without_labels_of_groups_says_nothing_of_them() -> None:
    facts = train(recipe(data="digits"), data=DATA).facts
    assert "groups" not in facts["data"]
    assert "worst_group" not in facts["members"]["sparse"]["test"]
    assert group_table(facts) is None


def test_a_planted_set_brings_its_own_labels() -> None:
    pytest.importorskip("sklearn")
    chosen = {"name": "coloured-digits", "limit": 300, "settings": {"conflicting": 0.1}}
    data = load("coloured-digits", limit=300, settings={"conflicting": 0.1})
    facts = train(recipe(data=chosen, epochs=1, twins=[], objective="group-dro")).facts
    assert sum(part["train"] for part in facts["data"]["groups"].values()) == len(data.train.y)
    assert facts["data"]["sha256"] == data.fingerprint()
    assert facts["recipe"]["data"]["settings"] == {"conflicting": 0.1}


@pytest.mark.parametrize("by", ["colour", "texture", None])
def test_groups_are_by_one_cue_of_several_or_by_all(by: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def small() -> Raw:
        y = torch.arange(200) % 4
        return Raw(torch.full((200, 1, 6, 6), 200, dtype=torch.uint8), y, tuple("abcd"))

    monkeypatch.setattr(sets, "_BASES", {"digits": small})
    settings = {"conflicting": 0.1, "second": 0.3}
    chosen = {"data": {"name": "coloured-textured-digits", "settings": settings}, "groups": by}
    facts = train(recipe(**chosen, epochs=1, twins=[], training="static", objective="rest")).facts
    truth = truths("coloured-textured-digits", settings=settings).train
    found = {name: part["train"] for name, part in facts["data"]["groups"].items()}
    if by is None:
        assert len(found) == 16 and "a, conflicting colour and texture" in found
    else:
        assert found == truth.groups(("colour", "texture").index(by)).counts()
    assert facts["recipe"].get("groups") == by
    assert (f" Groups are by {by}." in trained(facts)) == (by is not None)


def test_a_column_of_ones_own_table_makes_the_groups_that_are_trained_with_and_measured(tmp_path: Path) -> None:
    rows = [(n % 2, (n + (n % 12 < 2)) % 2) for n in range(240)]
    lines = [
        f"{('moo', 'hump')[y]} {('grass', 'sand')[p]} {n % 7},{'cd'[y]},{'gs'[p]}" for n, (y, p) in enumerate(rows)
    ]
    (tmp_path / "t.csv").write_text("\n".join(["text,label,place", *lines]))
    asked = {"data": str(tmp_path / "t.csv"), "net": "text", "groups": "place", "training": "static", "twins": []}
    facts = [train(recipe(**asked, objective=name, epochs=1)).facts for name in ("erm", "group-dro")]
    for found in facts:
        groups = found["data"]["groups"]
        assert list(groups) == ["c, place g", "c, place s", "d, place g", "d, place s"]
        assert 0 < groups["c, place s"]["train"] < 0.4 * groups["c, place g"]["train"]
        assert found["members"]["sparse"]["test"]["worst_group"] == min(
            found["members"]["sparse"]["test"]["groups"].values()
        )
    assert facts[0]["members"] != facts[1]["members"]


# ---------------------------------------------------------------- resuming


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "group-dro"},
        {"objective": {"name": "jtt", "epochs": 2}},
        {"objective": {"name": "adversarial", "steps": 2, "test_steps": 0}},
        {"sampler": {"name": "dynamic-pruning", "keep": 0.6, "choose": "drawn"}},
        {"objective": "rest", "twins": []},
    ],
    ids=["group-dro", "jtt", "adversarial", "dynamic-pruning", "rest"],
)
def test_a_run_killed_at_every_point_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    asked = asks(**changes)
    run(asked, tmp_path / "whole")
    put, kills = Store.put, 0

    def dying(self: Store, file: str, content: Any) -> None:
        put(self, file, content)
        raise Killed

    out = tmp_path / "killed"
    while not out.exists():
        with monkeypatch.context() as patch:
            patch.setattr(Store, "put", dying)
            try:
                run(asked, out, resume=True)
            except Killed:
                kills += 1
                assert kills < 20
    assert kills >= 3
    assert written(out) == written(tmp_path / "whole")


def test_other_ranks_are_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dying(self: Store, file: str, content: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put", dying)
        with pytest.raises(Killed):
            run(asks(objective="rest"), tmp_path / "out")
    others = ranks(DATA, GROUPS)
    others.rank[0] = 2
    with pytest.raises(ResumeError, match="differs in ranks"):
        train(asks(objective="rest"), data=DATA, groups=GROUPS, ranks=others, out=tmp_path / "out", resume=True)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "rst"}, "Did you mean 'rest'"),
        ({"objective": {"name": "rest", "upp": 3}}, "Did you mean 'objective.up'"),
        ({"objective": {"name": "rest", "up": -1.0}}, "objective.up must be above 0"),
        ({"sampler": "pair"}, "Did you mean 'pairs'"),
        ({"objective": "rest", "sampler": "weighted"}, "Choose sampler: shuffled, or objective.by: loss"),
        ({"sampler": "pairs", "ranks": "x"}, "the objective makes nothing of"),
        ({"objective": "sebra", "sampler": "shuffled", "ranks": "x"}, "Choose sampler: pairs"),
        ({"objective": "adversarial", "data": "wiki-topics", "net": "text"}, "samples of this data are words"),
        ({"sampler": {"name": "dynamic-pruning", "warm": 3}}, "prunes nothing in 3 epochs"),
        ({"sampler": {"name": "dynamic-pruning", "chunk": 3}}, "cuts texts into chunks"),
        ({"ranks": "x"}, "ranks does not go with objective 'erm' and sampler 'shuffled'"),
        ({"ranks": "x", "objective": "jtt"}, "ranks does not go with objective 'jtt'"),
        ({"ranks": {"path": "x", "share": 0.1}, "objective": "sebra"}, "ranks.share=0.1 does not go with objective"),
        ({"ranks": {"path": "x", "share": 0.1}, "sampler": "ranked"}, "it makes groups, and neither trains with them"),
        ({"ranks": {"path": "x", "share": 2.0}}, "ranks.share must be less than or equal to 1"),
        ({"groups": "color"}, "data 'coloured-digits' has no labels of groups 'color'. Did you mean 'colour'"),
        ({"groups": "object", "data": "celeba"}, "no labels of groups 'object'. Choose one of: attribute"),
        ({"groups": "colour", "data": "bar"}, "data 'bar' has no labels of groups 'colour'. Leave groups out"),
        ({"data": {"name": "digits", "settings": {"conflicting": 0.1}}}, "takes no settings"),
        ({"data": {"name": "coloured-digits", "settings": {"conflicting": 2.0}}}, "conflicting must be"),
        ({"data": {"name": "coloured-digits", "settings": {"conflict": 0.1}}}, "Did you mean 'conflicting'"),
        ({"data": {"name": "coloured-digits", "settings": {"second": 0.1}}}, "second=0.1 does not go with data"),
        ({"data": {"name": "coloured-digits", "settings": {"second_strength": 0.5}}}, "this set has one"),
        ({"data": {"name": "coloured-digits", "settings": UNBIASED}}, "conflicting=0.1 does not go with unbiased=True"),
        ({"data": {"name": "emoji-people", "settings": UNBIASED}}, "conflicting=0.1 does not go with unbiased=True"),
        ({"data": {"name": "cifar-10-c", "settings": {"size": 16}}}, "unknown setting of this data 'size'"),
        ({"data": {"name": "cifar-10-c", "settings": {"unreadable": "skip"}}}, "unknown setting of this data"),
    ],
)
def test_what_cannot_be_is_refused_by_the_recipe(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LowdimError) as caught:
        recipe(**changes)
    assert message in str(caught.value)


def test_ranks_that_are_not_there_or_of_other_data_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no ranks"):
        train(recipe(objective="rest", ranks=str(tmp_path)), data=DATA, out=tmp_path / "out")
    other, _ = biased(seed=1)
    with pytest.raises(DataError, match="the ranks are of other samples"):
        train(asks(objective="rest"), data=other, ranks=RANKS, out=tmp_path / "out")
    flat = ranks(DATA, GROUPS)
    flat.rank.fill_(1)
    with pytest.raises(DataError, match="share one rank"):
        train(asks(objective="rest"), data=DATA, ranks=flat, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


WANTS = [
    (kind, name)
    for kind, names in (("objective", OBJECTIVES), ("sampler", SAMPLERS))
    for name in names
    if "groups" in families.build(kind, name).requires
]


@pytest.mark.parametrize(("kind", "name"), WANTS)
def test_what_needs_groups_takes_those_given_whatever_the_data(kind: str, name: str, tmp_path: Path) -> None:
    asked = recipe(**{kind: name}, data="digits", twins=[], epochs=2)
    with pytest.raises(
        RecipeError, match=rf"{kind} '{name}' needs groups, and data 'digits' has no .* argument groups"
    ):
        train(asked, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    for given in ({}, {"groups": {"test": GROUPS["test"]}}):
        with pytest.raises(RecipeError, match="needs groups"):
            train(asked, data=DATA, **given)  # type: ignore[arg-type]
    plain = train(recipe(data="digits", twins=[], epochs=2), data=DATA, groups=GROUPS).facts
    facts = train(asked, data=DATA, groups=GROUPS).facts
    assert facts["data"]["groups"] == plain["data"]["groups"]
    assert facts["members"] != plain["members"]


def test_groups_of_other_samples_are_refused() -> None:
    wrong = GROUPS | {"test": GROUPS["train"]}
    with pytest.raises(DataError, match="groups are of"):
        train(recipe(objective="group-dro"), data=DATA, groups=wrong)


def test_ranks_on_disk_are_read(tmp_path: Path) -> None:
    RANKS.save(tmp_path / "ranks")
    asked = recipe(objective="rest", ranks=str(tmp_path / "ranks"), twins=[])
    read = train(asked, data=DATA, groups=GROUPS, out=tmp_path / "out")
    assert read.facts["members"] == run(asks(objective="rest", twins=[])).facts["members"]
    assert read.facts["recipe"]["ranks"] == {"path": str(tmp_path / "ranks"), "share": 0.05}
    assert load_file(tmp_path / "out" / "sparse.safetensors")
    assert json.loads((tmp_path / "out" / "training.json").read_text())["data"]["ranks"]["method"] == "made"


def test_recipes_without_the_new_keys_are_as_they_were() -> None:
    plain = TrainingRecipe(data="digits").to_dict()
    assert not {"objective", "sampler", "ranks"} & plain.keys()
    assert "settings" not in plain["data"]
    spelt = TrainingRecipe(data="digits", objective="erm", sampler="shuffled", ranks=None)
    assert spelt.to_dict() == plain
    chosen = recipe(objective={"name": "rest", "up": 10.0}, sampler="shuffled")
    assert TrainingRecipe.from_yaml(chosen.to_yaml()) == chosen
    assert chosen.to_dict()["objective"]["up"] == 10.0


def test_a_member_that_a_test_registers_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))
    registry.register("objective", "focal", "tests.train.compare.focal:Focal", title="A focal loss")
    registry.register("sampler", "halves", "tests.train.compare.focal:Halves", title="Every other sample")
    facts = run(recipe(objective={"name": "focal", "gamma": 1.0}, sampler="halves", twins=[])).facts
    assert facts["recipe"]["objective"] == {"name": "focal", "gamma": 1.0}
    assert facts["steps"]["per_epoch"] == -(-(len(DATA.train.y) // 2) // 32)
    with pytest.raises(RecipeError, match=r"objective.gamma must be at least 0"):
        families.build("objective", {"name": "focal", "gamma": -1.0})
    over = run(recipe(objective={"name": "rest", "over": {"name": "focal", "gamma": 3.0}}, twins=[])).facts
    assert over["recipe"]["objective"]["over"] == {"name": "focal", "gamma": 3.0}
    assert torch.isfinite(torch.tensor(over["members"]["sparse"]["curve"][-1]["loss"]))
