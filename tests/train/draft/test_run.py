"""Drafts end to end: what is trained, what is measured, what is written; and going on to the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.prune import tiny
from tests.prune.test_crash import check, crash
from tests.train.draft import small
from tests.train.pretrain import small as pretraining
from transformers import AutoModelForCausalLM, AutoTokenizer

from lowdim.core.errors import LowdimError
from lowdim.core.masks import Masks
from lowdim.models.load import load
from lowdim.runs.directory import Directory
from lowdim.runs.fingerprint import ResumeError
from lowdim.runs.lock import OutputError
from lowdim.train.draft.api import FILE, distill_draft, plan
from lowdim.train.draft.networks import kept, shorten_


def weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


def test_side_by_side(text: Path, base: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "out", list[str]()
    made = small.recipe(text, base, rivals=["distillspec", "ce"], tune={"steps": 2}, steps=8)
    result = distill_draft(made, out=out, announce=said.append)
    assert json.loads((out / FILE).read_text()) == result.facts
    assert list(result.measured) == ["start", "adaspec", "distillspec", "ce"]
    assert list(result.facts["trained"]) == ["target", "distillspec", "adaspec", "ce"]  # the reference is the rival
    assert "distillspec: 8 steps of 96 tokens" in said[0] and "min on this machine" in said[0]
    for name, found in result.measured.items():
        told = found["held"]
        assert 0 < told["acceptance"] <= 1 and 0 <= told["agreement"] <= 1, name
        assert told["simulated"]["tokens"] >= 3 * 6 and 1 <= told["simulated"]["efficiency"] <= 3
    for method in ("adaspec", "distillspec"):
        assert result.measured[method]["held"]["acceptance"] > result.measured["start"]["held"]["acceptance"]
    for place in (out, out / "distillspec", out / "ce", out / "target"):
        AutoModelForCausalLM.from_pretrained(place)
        assert AutoTokenizer.from_pretrained(place).get_vocab() == AutoTokenizer.from_pretrained(base).get_vocab()
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == 1
    assert len({weights(place) for place in (out, out / "distillspec", out / "ce")}) == 3
    assert "stages" in json.loads((tmp_path / "out.run.json").read_text())
    again = distill_draft(made, out=out, resume=True)
    assert again.facts == result.facts and not again.run
    with pytest.raises(ResumeError, match=r"recipe\.steps"):
        distill_draft(small.recipe(text, base, rivals=["distillspec", "ce"], tune={"steps": 2}), out=out, resume=True)
    with pytest.raises(OutputError, match="exists and is not empty"):
        distill_draft(made, out=out)


def test_all_tokens_kept_is_distillspec_to_the_byte(text: Path, base: Path, tmp_path: Path) -> None:
    one = small.run(text, base, tmp_path / "one", drafter={"name": "adaspec", "keep": 1.0}, steps=4)
    other = small.run(text, base, tmp_path / "other", drafter="distillspec", steps=4)
    assert weights(one.out) == weights(other.out)
    assert list(one.facts["trained"]) == ["adaspec-reference", "adaspec"]
    assert list(other.facts["trained"]) == ["distillspec"]


def test_a_reference_of_other_length_is_a_training_of_its_own(text: Path, base: Path, tmp_path: Path) -> None:
    made = small.run(text, base, tmp_path / "out", rivals=["distillspec"], reference={"steps": 3}, steps=4)
    trained = made.facts["trained"]
    assert list(trained) == ["adaspec-reference", "adaspec", "distillspec"]
    assert [trained[name]["steps"] for name in trained] == [3, 4, 4]


def test_a_draft_that_is_the_target_is_accepted_before_and_after(text: Path, base: Path, tmp_path: Path) -> None:
    made = small.run(text, base, tmp_path / "out", draft=str(base), drafter="distillspec", steps=2)
    told = made.measured["start"]["held"]
    assert told["acceptance"] == pytest.approx(1.0, abs=1e-5) and told["agreement"] == 1.0
    assert told["simulated"]["acceptance"] == 1.0
    assert told["simulated"]["efficiency"] == told["simulated"]["predicted"] == 3.0


@pytest.mark.filterwarnings("ignore:.* weights stay dense")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_pruned_draft_keeps_its_zeros(precision: str, text: Path, base: Path, tmp_path: Path) -> None:
    model = load(base)
    with torch.no_grad():
        for block in model.model.layers:
            block.mlp.up_proj.weight[:, ::2] = 0.0
    model.save_pretrained(tmp_path / "pruned")
    made = small.run(text, base, tmp_path / "out", draft=str(tmp_path / "pruned"), steps=2, precision=precision)
    assert Masks.of(load(made.out)) == Masks.of(load(tmp_path / "pruned"))
    assert made.facts["trained"]["adaspec"]["zeros"] == pytest.approx(0.5)
    assert weights(made.out) != weights(tmp_path / "pruned")


@pytest.mark.parametrize("draft", ["config", "mapping"])
def test_a_draft_from_a_config(draft: str, text: Path, base: Path, tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    given: Any = {"name": "9m", **sizes}
    if draft == "config":
        rows = load(base).config.vocab_size
        file = tmp_path / "config.json"
        file.write_text(json.dumps({"model_type": "llama", "vocab_size": rows, **sizes}))
        given = str(file)
    made = small.run(text, base, tmp_path / "out", draft=given, steps=2)
    model = load(made.out)
    assert model.config.num_hidden_layers == 1 and model.config.vocab_size == load(base).config.vocab_size
    assert made.facts["draft"].keys() == {"config"}


@pytest.mark.parametrize("spelled", [float("inf"), {"__float__": "Infinity"}])
@pytest.mark.parametrize("folder", [False, True])
def test_a_draft_from_a_config_with_an_infinity(
    spelled: Any, folder: bool, text: Path, base: Path, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_heads": 4, "head_dim": 8, "state_size": 8, "n_groups": 1}
    sizes |= {"vocab_size": load(base).config.vocab_size, "chunk_size": 8}
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / "config.json"
    file.write_text(json.dumps({"model_type": "mamba2", "time_step_limit": [0.0, spelled], **sizes}))
    made = small.run(text, base, tmp_path / "out", draft=str(file.parent if folder else file), steps=2)
    assert tuple(load(made.out).config.time_step_limit) == (0.0, float("inf"))


def test_bfloat16_with_tasks_chats_and_texts(text: Path, base: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    load(base).save_pretrained(tmp_path / "chat")
    tokenizer.save_pretrained(tmp_path / "chat")
    chats = pretraining.chats(tmp_path / "chats.jsonl")
    made = small.run(
        chats,
        tmp_path / "chat",
        tmp_path / "out",
        data={"source": str(chats), "kind": "sft", "validation": 0.3},
        acceptance={"texts": ["held", str(text)]},
        precision="bfloat16",
        length=32,
        steps=2,
    )
    assert set(made.measured["adaspec"]) == {"held", str(text)}
    assert made.measured["adaspec"]["held"]["tokens"] < made.measured["adaspec"][str(text)]["tokens"]
    assert load(made.out).dtype == torch.bfloat16


def test_the_plan_alone_writes_nothing(text: Path, base: Path, tmp_path: Path) -> None:
    found = plan(small.recipe(text, base))
    assert found.steps == {"adaspec-reference": 6, "adaspec": 6} and min(found.seconds.values()) > 0
    assert "compared over" in found.render() and not list(tmp_path.iterdir())


def test_divergence_is_told_and_nothing_appears(text: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(LowdimError, match=r"training of ce diverged: at step \d"):
        small.run(text, base, tmp_path / "out", drafter="ce", optimizer={"name": "adamw", "lr": 1e30}, clip=None)
    assert not (tmp_path / "out").exists()


def test_blocks_are_kept_evenly_and_a_short_model_reads_back(base: Path, tmp_path: Path) -> None:
    assert kept(30, 4) == [0, 10, 19, 29] and kept(6, 1) == [0] and kept(5, 5) == [0, 1, 2, 3, 4]
    whole, short = load(base), shorten_(load(base), 2)
    short.save_pretrained(tmp_path / "short")
    read = load(tmp_path / "short")
    ids = torch.arange(5)[None]
    assert torch.equal(read(ids).logits, short(ids).logits)
    assert torch.equal(short.model.layers[1].mlp.up_proj.weight, whole.model.layers[2].mlp.up_proj.weight)
    assert read(ids, use_cache=True).past_key_values.get_seq_length() == 5


def test_interrupted_anywhere_and_resumed_it_is_the_same(
    text: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = small.recipe(text, base, steps=3, rivals=["ce"], save_seconds=0.0, tune={"steps": 2})
    whole = tiny.digest(distill_draft(made, out=tmp_path / "whole").out)
    out, left, real = tmp_path / "out", 0, Directory.write

    def write(self: Directory, *given: Any, **more: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        real(self, *given, **more)

    monkeypatch.setattr(Directory, "write", write)
    interrupted = 0
    for attempt in range(3, 40, 3):
        left = attempt
        try:
            distill_draft(made, out=out, resume=True)
            break
        except KeyboardInterrupt:
            interrupted += 1
    assert interrupted > 2 and tiny.digest(out) == whole


@pytest.mark.nightly
@pytest.mark.parametrize("first", range(11))
def test_killed_at_many_points(first: int, text: Path, base: Path, tmp_path: Path) -> None:
    settings = {"target": str(base), "steps": 3, "rivals": ["ce"], "save_seconds": 0.0, "tune": {"steps": 2}}
    check(crash(text, tmp_path, settings, (first, 11), None, "draft"), replaced=False)
