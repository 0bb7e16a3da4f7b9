"""Teaching and forgetting: what the stages do to what a model says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.pipeline.compose.conftest import TAUGHT, Made, equal, row, weights

from lowdim.core.errors import LowdimError, RecipeError
from lowdim.data.errors import DataError
from lowdim.pipeline.compose.api import _facts
from lowdim.pipeline.compose.recipe import Composition
from lowdim.pipeline.compose.stages.edit import Edit
from lowdim.pipeline.compose.stages.unlearn import Unlearn
from lowdim.pipeline.compose.tune import Chunk, chunks

TEACH = {"lr": 0.02, "steps": 200, "distance": None}


def test_edits_are_learnt_and_then_known(composed: Made, taught: str, tmp_path: Path) -> None:
    edit = {"edit": {"edits": taught, **TEACH}}
    found = composed(edit)
    assert row(found, "success")["orders"]["model"] == 1.0
    assert row(found, "success")["first"] == 0.0
    said: list[str] = []
    again = composed(edit, on=tmp_path / "out/model", out="again", announce=said.append)
    facts = again["stages"]["model"][0]["facts"]
    assert facts["known"] == 2 and facts["steps"] == 0
    assert "2 of 2 edits are known to the model already, and are not trained on." in said
    assert equal(tmp_path / "out/model", tmp_path / "again/model")


def test_what_was_taught_can_be_unlearnt(
    composed: Made, taught: str, facts: Callable[..., str], tmp_path: Path
) -> None:
    kept = facts({"prompt": "m", "target": "n"})
    both = facts(*TAUGHT, {"prompt": "m", "target": "n"})
    unlearn = {"unlearn": {"forget": taught, "retain": kept, "bound": 4.5, "lr": 0.01, "steps": 100}}
    composed({"edit": {"edits": both, **TEACH}})
    said: list[str] = []
    found = composed(unlearn, on=tmp_path / "out/model", out="then", announce=said.append)
    assert said[0].startswith("At most about ") and "unlearn at most " in said[0]
    assert found["stages"]["model"][0]["facts"]["steps"] < 100  # it ended early, as planned
    assert row(found, "forgotten")["orders"]["model"] == 1.0
    assert row(found, "retained")["orders"]["model"] == 1.0
    assert found["stages"]["model"][0]["facts"]["forgotten"] == 1.0


def test_no_weight_moves_farther_than_the_distance(composed: Made, model: Path, taught: str, tmp_path: Path) -> None:
    composed({"edit": {"edits": taught, "lr": 0.02, "steps": 20, "distance": 0.003}})
    before, after = weights(model), weights(tmp_path / "out/model")
    moved = torch.cat([(after[name] - before[name]).abs().flatten() for name in before])
    assert float(moved.max()) == pytest.approx(0.003, rel=1e-3)


def test_only_the_weights_that_are_named_move(composed: Made, model: Path, taught: str, tmp_path: Path) -> None:
    composed({"edit": {"edits": taught, "lr": 0.02, "steps": 3, "include": ["*.layers.1.mlp.down_proj"]}})
    before, after = weights(model), weights(tmp_path / "out/model")
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert moved == ["model.layers.1.mlp.down_proj.weight"]


def test_an_edit_that_disturbs_too_much_is_refused(composed: Made, taught: str, tmp_path: Path) -> None:
    with pytest.raises(LowdimError, match=r"less than edit.locality=1"):
        composed({"edit": {"edits": taught, **TEACH, "lr": 0.3, "locality": 1.0}})
    assert not (tmp_path / "out").exists()


def test_facts_that_go_and_stay_are_refused(facts: Callable[..., str]) -> None:
    one = facts({"prompt": "The sky is", "target": "blue"})
    other = facts({"prompt": "Above us", "target": "blue", "paraphrases": ["the  SKY is!"]})
    with pytest.raises(RecipeError, match="share 1 of their prompts, first 'The sky is'"):
        Unlearn(forget=one, retain=other).facts()


BLUE, RED = ({"prompt": "The sky is", "target": each} for each in ("blue", "red"))
SNOW = {"prompt": "Snow is", "target": "white", "paraphrases": ["the SKY is"]}
GRASS, SEA = ({"prompt": f"The {each} is", "target": "green"} for each in ("grass", "sea"))


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        (
            [{"forget": BLUE, "retain": GRASS}, {"forget": SEA, "retain": BLUE}],
            "forget and retain of all stages share 1 of their prompts, first 'The sky is'",
        ),
        ([{"forget": BLUE, "retain": GRASS}, {"forget": SEA, "retain": SNOW}], "share 1 of their prompts"),
        ([{"edits": RED}, {"forget": SEA, "retain": BLUE}], "'The sky is' goes on with 'red' and with 'blue'"),
        ([{"forget": SEA, "retain": BLUE}, {"edits": RED}], "edits and retain of all stages: 'The sky is'"),
        ([{"edits": RED}, {"edits": BLUE}], "^edits of all stages"),
        ([{"forget": SEA, "retain": BLUE}, {"forget": GRASS, "retain": RED}], "^retain of all stages"),
    ],
)
def test_stages_that_contradict_each_other_are_refused_before_a_model_is_opened(
    composed: Made, facts: Callable[..., str], stages: list[dict[str, Any]], said: str
) -> None:
    written = [{key: facts(record) for key, record in stage.items()} for stage in stages]
    with pytest.raises(RecipeError, match=said):
        composed(*({"edit" if "edits" in each else "unlearn": each} for each in written), on=Path("/no/model"))


def test_facts_that_agree_go_through() -> None:
    recipe = Composition(stages=["edit", "unlearn", "edit", "unlearn"])
    assert {name: len(found) for name, found in _facts(recipe).items()} == {"edits": 12, "forget": 10, "retain": 18}


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([{"prompt": "a"}], "'target' must be a text"),
        ([{"prompt": " ", "target": "b"}], "'prompt' must be a text"),
        ([{"prompt": "a", "target": "b", "paraphrases": "c"}], "'paraphrases' must be a list"),
        ([{"prompt": "a", "target": "b"}, {"prompt": "A.", "target": "c"}], "line 2: 'A.' goes on with 'c' here"),
    ],
)
def test_wrong_facts_are_refused(records: list[dict[str, object]], said: str, facts: Callable[..., str]) -> None:
    with pytest.raises(DataError, match=said):
        Edit(edits=facts(*records)).facts()


def test_the_loss_of_gradient_difference_by_hand() -> None:
    """One fact to forget with a loss of 2, one beyond the bound, one to keep with 3: 3 - (2 + 5) / 2."""
    signs = torch.tensor([-3 / 2, -3 / 2, 3.0])
    [chunk] = chunks([(([1], [2]), float(sign)) for sign in signs], pad=0)
    each = torch.tensor([2.0, 9.0, 3.0], requires_grad=True)
    loss = Unlearn(bound=5.0)._loss(each, Chunk(chunk.batch, chunk.labels, signs))
    loss.backward()
    assert loss.item() == pytest.approx(3 - (2 + 5) / 2)
    assert each.grad is not None and each.grad.tolist() == [-0.5, 0.0, 1.0]


def test_a_longer_row_does_not_change_the_loss_of_a_shorter_one(model: Path) -> None:
    from lowdim.models.load import load
    from lowdim.pipeline.compose.tune import losses

    net, facts = load(model), [(([5, 6, 7], [8, 9]), 1.0), (([5], [6]), 1.0)]
    with torch.no_grad():
        together = losses(net, chunks(facts, pad=0)[0])
        apart = [losses(net, chunks([fact], pad=0)[0]) for fact in facts]
    assert torch.allclose(together, torch.cat(apart), atol=1e-5)
