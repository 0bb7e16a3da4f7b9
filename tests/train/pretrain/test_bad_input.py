"""What a user can get wrong is told before any work, and nothing is left behind or lost."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from tests.train.pretrain import small

from lowdim.core.errors import LowdimError
from lowdim.models.disk.source import resolve
from lowdim.train.pretrain import configs
from lowdim.train.pretrain.api import pretrain


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"length": 60, "data": {"source": "SHORT"}}, "the training text has .* tokens, fewer than one sequence of 61"),
        ({"model": {"vocab_size": 280}}, "the tokenizer has 300 tokens, and the model's embedding 280 rows"),
        ({"length": 65}, r"length=65 is more than the 64 positions"),
        ({"placement": {"name": "mix-ln", "alpha": 0.25}}, "makes no whole block"),
        ({"data": {"source": "/nowhere.jsonl"}}, "does not exist"),
        ({"parallel": "fsdp", "precision": "pure-bfloat16", "placement": "gpas"}, "shards weights of one type"),
        ({"data": {"tokenizer": "NOTHING", "vocabulary": None}}, "holds no tokenizer that can be read"),
        ({"model": {"num_key_value_heads": 3}}, "must be a multiple of model.num_key_value_heads; got 2 and 3"),
        ({"model": {"num_attention_heads": 0}}, "must be a multiple of model.num_attention_heads; got 16 and 0"),
        ({"model": {"qk_norm": "no"}}, "model.qk_norm must be true or false; got 'no'"),
        ({"model": {"embedding_std": -1}}, "model.embedding_std must be above 0; got -1"),
        ({"model": {"name": ["9m"]}}, "unknown model"),
        ({"model": {"name": None}}, "unknown model"),
        (
            {"decay": "alphadecay", "optimizer": {"weight_decay": 0.1}},
            "no matrix to decay by its spectrum",
        ),  # known once there is a model
        (
            {"data": {"kind": "sft", "tokenizer": "BASE", "vocabulary": None, "source": "CHATS"}, "length": 2},
            "no docum",
        ),
        ({"schedule": {"warmup": 5000}, "steps": None}, "never gets to its peak"),
        ({"batch": 2, "accumulate": 2, "data": {"kind": "sft", "tokenizer": "BASE", "vocabulary": None}}, "plain text"),
    ],
    ids=str,
)
def test_it_is_refused_and_leaves_nothing(
    settings: dict[str, Any], said: str, text: Path, base: Path, tmp_path: Path
) -> None:
    short = small.write(tmp_path / "short.jsonl", ["a cat", "a dog", "the bird"])
    chats = small.chats(base.parent / "chats.jsonl")
    places = {"SHORT": str(short), "BASE": str(base), "NOTHING": str(tmp_path), "CHATS": str(chats)}
    if "data" in settings:
        data = {key: places.get(str(value), value) for key, value in settings["data"].items()}
        settings = {**settings, "data": {**data, "template": "plain"} if data.get("kind") else data}
    with pytest.raises(LowdimError, match=said):
        small.run(text, tmp_path / "out", **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["short.jsonl"]


def test_tensorboard_that_is_not_installed(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "tensorboard" else real(name, *a))
    with pytest.raises(LowdimError, match=r"needs the package tensorboard: pip install 'lowdim\[tensorboard\]'"):
        small.run(text, tmp_path / "out", tensorboard=True)
    assert not list(tmp_path.iterdir())


def test_two_runs_into_one_directory(text: Path, tmp_path: Path) -> None:
    from lowdim.runs.directory import Directory

    with Directory(tmp_path / "out"), pytest.raises(LowdimError, match="is being written by another process"):
        small.run(text, tmp_path / "out")


def test_documents_without_an_answer_within_the_length_are_told(base: Path, tmp_path: Path) -> None:
    rows = small.chats(tmp_path / "chats.jsonl")
    long = {"messages": [{"role": "user", "content": "x " * 80}, {"role": "assistant", "content": "y"}]}
    rows.write_text(rows.read_text() + "".join(json.dumps(long) + "\n"))
    data = {"kind": "sft", "vocabulary": None, "template": "plain", "validation": 0.1}
    with pytest.warns(UserWarning, match="1 documents are passed over"):
        small.run(rows, tmp_path / "out", model=str(base), data=data, length=48, steps=2)


def test_a_placed_model_comes_back_and_is_trained_on(text: Path, tmp_path: Path) -> None:
    first = small.run(text, tmp_path / "lns", placement="lns")
    resolve(str(tmp_path / "lns"))
    again = {"model": str(tmp_path / "lns"), "data": {"vocabulary": None}, "steps": 10}
    made = small.run(text, tmp_path / "more", **again)
    assert made.loss < first.loss
    assert "lowdim_placement" in json.loads((tmp_path / "more" / "config.json").read_text())
    with pytest.raises(LowdimError, match="has a placement already"):
        small.run(text, tmp_path / "other", placement="post-ln", **again)


def test_ramps_of_branches_go_on_where_they_were(text: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    small.run(text, tmp_path / "out", placement={"name": "prores", "steps": 4})
    shares = [v.item() for n, v in load_file(tmp_path / "out" / "model.safetensors").items() if n.endswith("prores.a")]
    assert shares == [1.0, 0.75]  # six steps over 4 and 8
    recipe = small.recipe(text, placement={"name": "prores", "steps": 4})
    assert pretrain(recipe, out=tmp_path / "out", resume=True).facts["steps"] == 6


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"model_type": "qwen3", "num_attention_heads": 2, "num_key_value_heads": 32}, "got 2 and 32"),
        ({"model_type": "gemma3"}, "Take its language model: gemma3_text"),
    ],
)
def test_configs_that_no_model_can_have(model: dict[str, Any], said: str) -> None:
    with pytest.raises(LowdimError, match=said):
        configs.config(model, 300, 16)


def test_a_tokenizer_smaller_than_asked_is_told(text: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"below the embedding's 5,000 rows"):
        small.run(text, tmp_path / "out", data={"vocabulary": 5000}, steps=2)


def test_what_becomes_of_zeros_is_told(text: Path, base: Path, tmp_path: Path) -> None:
    from lowdim.models.load import load, read_tokenizer
    from lowdim.models.save import save_model

    model = load(base)
    for parameter in model.model.layers.parameters():
        if parameter.dim() > 1:
            parameter.data[:, ::2] = 0
    save_model(model, read_tokenizer(base), tmp_path / "sparse")
    with pytest.warns(UserWarning, match="50% of the weights .* are zero, and pre-training holds none of them"):
        small.run(text, tmp_path / "out", model=str(tmp_path / "sparse"), data={"vocabulary": None}, steps=2)
