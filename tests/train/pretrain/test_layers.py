"""Blocks in turns, 2:4 masks and low-rank layers, by name in a recipe: what trains, resumes and is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.train.pretrain import small
from torch import Tensor
from transformers import AutoModelForCausalLM

import lowdim
from lowdim.core.errors import LowdimError, RecipeError
from lowdim.train.pretrain.api import plan, pretrain
from lowdim.train.pretrain.recipe import Pretraining

FST = {"from-scratch": {"name": "fst", "every": 2, "decay": 1e-3}}
SSTE = {"from-scratch": "s-ste"}
STEP = {"from-scratch": {"name": "step", "least": 0.2, "most": 0.3}}
LISA = {"sampling": {"name": "lisa", "active": 1, "every": 2}}
OWS = {"sampling": {"name": "ows", "active": 1, "every": 2, "m": 3.0}}
LOW = {"rank": "uniform", "factors": {"keep": 0.5}}
WELORE = {"rank": {"name": "welore", "least": 0.2}, "factors": {"keep": 0.5, "written": "factors"}}
TOGETHER = {**LISA, **SSTE, "rank": "linear", "factors": {"include": ["*.self_attn.*"], "init": "random"}}
ALL = {"fst": FST, "s-ste": SSTE, "step": STEP, "lisa": LISA, "ows": OWS, "low": LOW, "welore": WELORE, "all": TOGETHER}
NOT_DENSE = 0.01


def files(out: Path) -> dict[str, Tensor]:
    return load_file(out / "model.safetensors")


def fours(weight: Tensor) -> Tensor:
    return (weight.unflatten(1, (-1, 4)) != 0).sum(2)


def feed_forward(out: Path) -> list[Tensor]:
    return [weight for name, weight in files(out).items() if "mlp" in name]


@pytest.mark.parametrize("name", ALL)
def test_a_stopped_run_goes_on_to_the_same_bytes(
    name: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {**ALL[name], "steps": 8, "save_seconds": 0.0}
    made = small.run(text, tmp_path / "whole", **settings)
    recipe = small.recipe(text, **settings)
    for at in (3, 7):
        small.interrupt(lambda: pretrain(recipe, out=tmp_path / "out", resume=True), at, monkeypatch)
    again = pretrain(recipe, out=tmp_path / "out", resume=True)
    assert small.weights(tmp_path / "out") == small.weights(tmp_path / "whole")
    assert small.losses(tmp_path / "out") == small.losses(tmp_path / "whole")
    assert again.facts == made.facts
    dense = small.run(text, tmp_path / "dense", steps=8)
    assert small.losses(tmp_path / "dense") != small.losses(tmp_path / "whole")
    assert not {"rank", "sampling", "from-scratch"} & dense.facts.keys()


@pytest.mark.parametrize("settings", [SSTE, STEP, {"from-scratch": {"name": "sr-ste", "decay": 0.1}}], ids=str)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_files_are_two_of_four(settings: dict[str, Any], precision: str, text: Path, tmp_path: Path) -> None:
    made = small.run(text, tmp_path / "out", precision=precision, placement="lns", **settings)
    assert len(feed_forward(tmp_path / "out")) == 6
    for weight in feed_forward(tmp_path / "out"):
        assert int(fours(weight).max()) == 2
        assert not torch.signbit(weight[weight == 0]).any()  # one zero, not two
    assert all((w == 0).float().mean() < NOT_DENSE for n, w in files(tmp_path / "out").items() if "attn" in n)
    said, weights = made.facts["from-scratch"], feed_forward(tmp_path / "out")
    assert said["zeros"] == sum(int((weight == 0).sum()) for weight in weights) and said["dense"] is False
    assert said["sparsity"] == said["zeros"] / sum(weight.numel() for weight in weights) >= 0.5
    assert [choice["step"] for choice in said["choices"]] == [1, 2, 3, 4, 5, 6]


def test_the_loss_that_is_told_is_that_of_the_files(text: Path, tmp_path: Path) -> None:
    made = small.run(text, tmp_path / "out", **SSTE)
    again = small.recipe(text, model=str(tmp_path / "out"), data={"vocabulary": None}, steps=2)
    from lowdim.train.pretrain.engine import Engine
    from lowdim.train.pretrain.prepare import prepare

    with pytest.warns(UserWarning, match="are zero, and pre-training holds none of them"):
        assert Engine().begin(prepare(again)).judge()["loss"] == pytest.approx(made.loss, rel=1e-5)


def test_the_end_of_fst_is_dense_and_so_is_what_is_written(text: Path, tmp_path: Path) -> None:
    made = small.run(text, tmp_path / "out", **FST)
    assert all((weight == 0).float().mean() < NOT_DENSE for weight in feed_forward(tmp_path / "out"))
    assert made.facts["from-scratch"]["dense"] is True and made.facts["from-scratch"]["sparsity"] < NOT_DENSE
    whole = {"from-scratch": {**FST["from-scratch"], "tail": 0.0}}
    sparse = small.run(text, tmp_path / "sparse", **whole)
    assert sparse.facts["from-scratch"]["sparsity"] == 0.5
    for weight in feed_forward(tmp_path / "sparse"):
        assert int(fours(weight).max()) == int(fours(weight.T).max()) == 2


def test_what_is_not_two_of_four_is_not_written(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lowdim.train.pretrain.engine import Engine

    real = Engine.stock

    def stock(self: Any, directory: Any, prepared: Any, model: Any) -> Path:
        model.model.layers[1].mlp.up_proj.weight.data.fill_(1.0)
        return real(self, directory, prepared, model)

    monkeypatch.setattr(Engine, "stock", stock)
    with pytest.raises(LowdimError, match=r"layers.1.mlp.up_proj was trained in 2:4, and more of it is in the files"):
        small.run(text, tmp_path / "out", **SSTE)
    assert not (tmp_path / "out").exists()


def test_blocks_take_turns(text: Path, tmp_path: Path) -> None:
    first = small.run(text, tmp_path / "first", steps=2, sampling={"name": "lisa", "active": 1, "every": 9})
    turns = first.facts["sampling"]["turns"]
    assert sorted(turns) == [0, 1] and first.facts["sampling"]["probabilities"] == [0.5, 0.5]
    start = {name: weight for name, weight in _start(text).items() if ".layers." in name}
    for name, weight in files(tmp_path / "first").items():
        if name in start:
            still = torch.equal(weight, start[name])
            assert still == (turns[int(name.split(".")[2])] == 0), name
    ows = small.run(text, tmp_path / "ows", **OWS).facts["sampling"]["probabilities"]
    assert sum(ows) == pytest.approx(1) and ows != [0.5, 0.5]


def _start(text: Path) -> dict[str, Tensor]:
    from lowdim.train.pretrain.network import make
    from lowdim.train.pretrain.prepare import prepare

    recipe = small.recipe(text)
    state: dict[str, Tensor] = make(recipe, prepare(recipe).config, None, torch.device("cpu"))[0].state_dict()
    return state


def test_outliers_that_no_block_has_are_told(text: Path, tmp_path: Path) -> None:
    with pytest.raises(LowdimError, match=r"only 0 blocks have a probability above 0.*smaller m"):
        small.run(text, tmp_path / "out", sampling={"name": "ows", "active": 1, "m": 1e6})
    assert not list(tmp_path.iterdir())


def test_factors_are_written_as_a_stock_model_or_as_they_are(text: Path, tmp_path: Path) -> None:
    made = small.run(text, tmp_path / "dense", **LOW)
    assert set(made.facts["rank"]["ranks"].values()) == {8} and len(made.facts["rank"]["ranks"]) == 14
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    for name in made.facts["rank"]["ranks"]:
        values = torch.linalg.svdvals(model.get_submodule(name).weight.detach())
        assert float(values[8:].max()) < 1e-4 * float(values[0])
    held = 2 * (4 * 8 * (16 + 16) + 3 * 8 * (16 + 24)) + 2 * 2 * 16
    assert made.facts["parameters"]["blocks"] == held
    factors = small.run(text, tmp_path / "out", **{**LOW, "factors": {"keep": 0.5, "written": "factors"}})
    assert factors.facts["curve"] == made.facts["curve"]
    other = lowdim.load(tmp_path / "out")
    for name in made.facts["rank"]["ranks"]:
        layer = other.get_submodule(name)
        assert torch.allclose(layer.a @ layer.b, model.get_submodule(name).weight, atol=1e-6)
    assert sum(weight.numel() for name, weight in other.named_parameters() if ".layers." in name) == held


def test_a_model_that_is_there_is_factorised_too(base: Path, text: Path, tmp_path: Path) -> None:
    ends = []
    for keep in (1.0, 0.25):
        settings = {"model": str(base), "data": {"vocabulary": None}, "rank": "uniform", "factors": {"keep": keep}}
        ends.append(small.run(text, tmp_path / str(keep), steps=2, **settings).facts)
    assert ends[0]["curve"][0]["loss"] < ends[1]["curve"][0]["loss"]
    assert ends[1]["parameters"]["blocks"] < ends[0]["parameters"]["blocks"]


def test_the_plan_names_them(text: Path) -> None:
    said = plan(small.recipe(text, **TOGETHER)).render()
    assert "8 layers are factors by linear: " in said and "weights in the place of 2,048; written dense" in said
    assert "6 layers, 2,304 weights, compute in 2:4 by s-ste; written so" in said
    assert "1 of 2 blocks train at a time by lisa, drawn anew every 2 steps" in said
    assert "the last 1 steps, and what is written, are dense" in plan(small.recipe(text, **FST)).render()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"from-scratch": "fts"}, "unknown from-scratch 'fts'. Did you mean 'fst'"),
        ({"from-scratch": {"name": "fst", "decay": -1}}, "from-scratch.decay must be at least 0"),
        ({"from_scratch": "fst"}, "unknown key 'from_scratch'. Did you mean 'from-scratch'"),
        ({"sampling": "liza"}, "unknown sampling 'liza'"),
        ({"rank": {"name": "linear", "slope": 2}}, "rank.slope must be between -1 and 1"),
        ({"sparse": {"include": ["*"]}}, "sparse names layers for from-scratch, which is not set"),
        ({"factors": {"keep": 0.1}}, "factors are made by rank, which is not set"),
        ({"rank": "uniform", "factors": {"keep": 0}}, "factors.keep must be greater than 0"),
        ({**SSTE, "parallel": "fsdp"}, "parallel=fsdp cuts matrices over the processes"),
        ({**LISA, "parallel": "fsdp"}, "blocks cannot take turns"),
        ({**LISA, **STEP}, "sampling lets go of that of frozen blocks"),
        ({**LISA, "optimizer": "lift"}, "this optimizer chooses what it trains by itself"),
    ],
    ids=str,
)
def test_what_does_not_go_together(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Pretraining(**settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({**SSTE, "sparse": {"include": ["*.mpl.*"]}}, r"sparse.include '\*.mpl.\*' matches no weight that can be 2:4"),
        ({**SSTE, "sparse": {"exclude": ["*.mlp.*"]}}, "sparse leaves none of the 14 linear layers"),
        ({**SSTE, **LOW}, "sparse leaves none of the 0 linear layers"),
        ({**LOW, "factors": {"include": ["q_proj"]}}, "factors.include 'q_proj' matches no weight that can be factors"),
        ({"rank": {"name": "welore", "least": 1.0}}, "rank welore factorises none of the layers at factors.keep=0.25"),
        ({**FST, "model": {"intermediate_size": 26}}, "4 must divide its inputs and its outputs"),
        ({**SSTE, "optimizer": {"name": "q-galore", "rank": 4}}, "is kept in 8 bits"),
        ({"optimizer": {"name": "q-galore", "rank": 4}, "parallel": "fsdp"}, "INT8 weights from two processes or more"),
        ({**STEP, "optimizer": "muon"}, "Take Adam or AdamW of torch"),
        ({"sampling": {"name": "lisa", "active": 3}}, "active=3 of 2 blocks"),
    ],
    ids=str,
)
def test_what_the_model_does_not_allow_is_refused_before_any_work(
    settings: dict[str, Any], said: str, text: Path, tmp_path: Path
) -> None:
    with pytest.raises(LowdimError, match=said):
        small.run(text, tmp_path / "out", **settings)
    assert not list(tmp_path.iterdir())


def test_the_command_line_sets_their_keys() -> None:
    given = ["from-scratch=fst", "from-scratch.decay=1e-4", "sampling=lisa", "sampling.active=3", "rank=welore"]
    made = Pretraining.assemble(None, {}, [*given, "rank.least=0.1", "factors.keep=0.3", "sparse.include=[a]"])
    assert made.from_scratch is not None and made.from_scratch.decay == 1e-4
    assert made.factors.keep == 0.3 and made.sparse.include == ("a",)
    assert made.to_dict()["rank"] == {"name": "welore", "least": 0.1, "of_what": "directions"}
    assert Pretraining.from_yaml(made.to_yaml()) == made
    assert json.loads(json.dumps(made.to_dict()))["sampling"]["active"] == 3
