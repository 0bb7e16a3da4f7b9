"""What cannot work is refused before anything is trained, in one sentence that says what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.train.draft import small
from tests.train.pretrain import small as pretraining
from transformers import AutoTokenizer

from lowdim.core.errors import LowdimError, RecipeError
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.load import load
from lowdim.train.draft.api import distill_draft


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"draft": "targt:2"}, "cannot|not|no "),
        ({"draft": "target:two"}, "must be target:N"),
        ({"draft": "22m"}, "unknown draft '22m'. Did you mean '20m'?"),
        ({"draft": {"hidden": 3}}, "either a name of lowdim pretrain's sizes or a model_type"),
        ({"draft": {"name": "22m"}}, "unknown draft '22m'. Did you mean '20m'?"),
        ({"drafter": "adaspek"}, "unknown drafter 'adaspek'. Did you mean 'adaspec'?"),
        ({"drafter": {"name": "adaspec", "keep": 0}}, "drafter.keep must be above 0"),
        ({"rivals": ["adaspec"]}, "name a method twice"),
        ({"rivals": ["ce", "ce"]}, "name a method twice"),
        ({"accumulate": 9}, "cannot be cut into accumulate=9 parts"),
        ({"reference": {"steps": 0}}, "reference.steps"),
        ({"optimizer": {"name": "galore", "rank": 2, "layerwise": True}}, "no clip"),
        ({"tune": {"steps": 1}, "schedule": {"warmup": 3}}, "schedule.warmup is 3 of the run's 1 steps"),
        ({"acceptance": {"drafted": 0}}, "acceptance.drafted"),
        ({"acceptance": {"texts": []}}, "acceptance.texts is empty"),
        ({"data": {"source": []}}, "data.source is empty"),
        ({"stepps": 3}, "Did you mean 'steps'"),
        ({"drafter": "distillspec", "reference": {"steps": 3}}, "reference is asked for by none of distillspec"),
        ({"drafter": "ce", "rivals": ["distillspec"], "reference": {"lr": 0.1}}, "none of ce, distillspec"),
        ({"tune": {"lr": 0.1}}, "tune.lr=0.1 does not go with steps=0: it changes nothing there"),
        ({"acceptance": {"tokens": 0}}, "acceptance.prompts=3 does not go with tokens=0"),
        ({"acceptance": {"tokens": 0, "prompts": 8, "prompt": 32, "drafted": 3}}, "acceptance.drafted=3 does not"),
    ],
)
def test_recipes(settings: dict[str, Any], said: str, text: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(LowdimError, match=said):
        distill_draft(small.recipe(text, base, **settings), out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"draft": "target:3"}, "fewer than the target's 3 blocks"),
        ({"draft": "target:0"}, "at least 1"),
        ({"length": 100}, "length need 100 positions, and the target has 64"),
        ({"acceptance": {"tokens": 100}}, "acceptance.prompt and .tokens need"),
        ({"acceptance": {"texts": ["/nowhere.txt"]}}, "nowhere.txt"),
        ({"data": {"source": "/nowhere.txt"}}, "nowhere.txt"),
        ({"data": {"kind": "sft"}}, "chat|answer|question"),
    ],
)
def test_what_only_models_and_texts_say(
    settings: dict[str, Any], said: str, text: Path, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(LowdimError, match=said):
        distill_draft(small.recipe(text, base, **settings), out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def resized(base: Path, out: Path, rows: int) -> Path:
    model = load(base)
    model.resize_token_embeddings(rows)
    model.save_pretrained(out)
    return out


@pytest.mark.parametrize("more", [7, -1])
def test_padding_beyond_the_words_of_the_other_is_cut_off_and_told(
    more: int, text: Path, base: Path, tmp_path: Path
) -> None:
    rows = load(base).config.vocab_size
    target = resized(base, tmp_path / "target", rows + 9)
    AutoTokenizer.from_pretrained(base).save_pretrained(target)
    other = resized(base, tmp_path / "draft", rows + 9 + more)
    longer = "draft" if more > 0 else "target"
    with pytest.warns(UserWarning, match=f"the {longer} has {rows + 9 + max(more, 0)} words and the other"):
        made = small.run(text, target, tmp_path / "out", draft=str(other), steps=2)
    assert made.facts["words"] == rows + 9 + min(more, 0)
    assert load(made.out).config.vocab_size == rows + 9 + more
    assert 0 < made.measured["adaspec"]["held"]["acceptance"] < 1


def test_a_draft_that_lacks_words_of_the_text_is_refused(text: Path, base: Path, tmp_path: Path) -> None:
    other = resized(base, tmp_path / "draft", 260)
    with pytest.raises(LowdimError, match="and the draft knows 260 tokens"):
        small.run(text, base, tmp_path / "out", draft=str(other), steps=2)
    assert not (tmp_path / "out.partial").exists()


def test_another_vocabulary_is_refused(text: Path, base: Path, tmp_path: Path) -> None:
    other = pretraining.run(
        pretraining.write(tmp_path / "o.jsonl", [f"zq{i} xk vv{i}" for i in range(60)]), tmp_path / "o"
    )
    with pytest.raises(LowdimError, match=r"another vocabulary than the target: token \d+ is '"):
        small.run(text, base, tmp_path / "out", draft=str(other.out), steps=2)


def test_a_file_that_is_no_config_is_refused(text: Path, base: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "lama"}))
    with pytest.raises(RecipeError, match="is no config"):
        small.run(text, base, tmp_path / "out", draft=str(file))


def test_several_processes_are_refused(text: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LowdimError, match="by one process"):
        small.run(text, base, tmp_path / "out")


@pytest.mark.parametrize("settings", [{}, {"draft": "DRAFT"}, {"draft": "9m", "tune": {"steps": 2}}], ids=str)
def test_parts_beside_layers_are_refused_before_training(
    settings: dict[str, Any], text: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {key: str(base) if value == "DRAFT" else value for key, value in settings.items()}
    monkeypatch.setattr(Checkpoint, "names", lambda self: ["model.layers.0.mlp.up_proj.slorb.s"])
    with pytest.raises(LowdimError, match="has parts beside its layers"):
        small.run(text, base, tmp_path / "out", **given)
    assert not list(tmp_path.iterdir())
