"""From a recipe to a stock directory, and the arithmetic on the way."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.pretrain import small
from tests.turns import turns
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

import lowdim
from lowdim.core.errors import LowdimError
from lowdim.runs.fingerprint import ResumeError
from lowdim.train.pretrain.api import plan, pretrain
from lowdim.train.pretrain.prepare import prepare
from lowdim.train.pretrain.run import Run


def test_a_stock_directory_comes_out(text: Path, tmp_path: Path) -> None:
    made = small.run(text, tmp_path / "out", steps=40)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.config.model_type == "llama" and model.config.use_cache
    assert model.config.eos_token_id == tokenizer.eos_token_id == 0
    ids = tokenizer("the cat", return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=4, do_sample=False).shape[1] > ids["input_ids"].shape[1]
    facts = json.loads((tmp_path / "out" / "pretraining.json").read_text())
    assert facts == made.facts and facts["diverged"] is None
    assert [point["step"] for point in facts["curve"]] == [*range(4, 41, 4)]
    assert facts["curve"][-1]["loss"] < facts["curve"][0]["loss"] - 0.3
    assert made.perplexity == pytest.approx(math.exp(made.loss))
    log = small.losses(tmp_path / "out")
    assert [step for step, loss, *_ in log if loss is not None] == [*range(1, 41)]
    assert sum(lost is not None for *_, lost in log) == 10
    assert 0 < made.run["mfu"] < 1 and made.run["tokens_per_s"] > 0 and made.run["peak_bytes"][0] > 1 << 20
    assert facts["tokens"] == 40 * 6 * 16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.log.jsonl", "out.run.json"]


def test_the_step_is_the_one_that_everybody_writes(text: Path, tmp_path: Path) -> None:
    """The plainest loop, from the same weights, has the same losses to the bit."""
    recipe = small.recipe(text, steps=5, schedule={"warmup": 2})
    pretrain(recipe, out=tmp_path / "out")
    prepared = prepare(recipe)
    from lowdim.train.pretrain.network import make
    from lowdim.train.pretrain.sequences import Batches

    model, _ = make(recipe, prepared.config, None, torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    wanted = []
    for step in range(5):
        (micro,) = Batches(prepared.text, 6, 1, 0).step(step)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * recipe.factor(step, 5)
        logits = model(input_ids=micro.ids).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), micro.targets.flatten())
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        wanted.append((step + 1, loss.item(), norm.item(), None))
    assert [line for line in small.losses(tmp_path / "out") if line[1] is not None] == wanted


def test_evaluation_weighs_every_token_alike_the_last_sequence_too(text: Path, tmp_path: Path) -> None:
    made = small.run(text, tmp_path / "out", steps=3, evaluation={"batch": 5})
    prepared = prepare(small.recipe(text, steps=3, evaluation={"batch": 5}))
    stream = torch.tensor(prepared.held.part.ids.astype("int64"))
    assert (len(stream) - 1) % 16, "the last sequence is to be a short one"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    lost = []
    for start in range(0, len(stream) - 1, 16):
        ids = stream[None, start : start + 16]
        ids = ids[:, : len(stream) - 1 - start]
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0]
        lost.append(nn.functional.cross_entropy(logits, stream[start + 1 : start + 17], reduction="none"))
    assert torch.cat(lost).numel() == len(stream) - 1
    assert made.loss == pytest.approx(float(torch.cat(lost).double().mean()), rel=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"accumulate": 4},
        {"checkpointing": True},
        {"evaluation": {"batch": 1, "every": 2}},
    ],
    ids=str,
)
def test_what_changes_memory_alone_changes_no_loss(settings: dict[str, Any], text: Path, tmp_path: Path) -> None:
    plain, other = small.run(text, tmp_path / "a"), small.run(text, tmp_path / "b", **settings)
    assert other.loss == pytest.approx(plain.loss, rel=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": {"name": "muon", "lr": 1e-2}},
        {"optimizer": {"name": "adam", "lr": 1e-2}},
        {"clip": None},
        {"clip": 0.01},
        {"schedule": "wsd"},
        {"seed": 1},
        {"batch": 5},
        {"length": 15},
        {"precision": "bfloat16"},
        {"precision": "pure-bfloat16"},
        {"model": {"qk_norm": True}},
        {"model": {"embedding_std": 0.6}},
        {"data": {"pack": False}},
        {"data": {"validation": 0.3}},
        {"data": {"streaming": True}},
    ],
    ids=str,
)
def test_every_other_setting_changes_what_comes_out(
    settings: dict[str, Any], text: Path, tmp_path: Path, base: Path
) -> None:
    small.run(text, tmp_path / "out", **settings)
    assert small.weights(tmp_path / "out") != small.weights(base)


def test_the_same_recipe_gives_the_same_bytes(text: Path, tmp_path: Path, base: Path) -> None:
    small.run(text, tmp_path / "out")
    for path in sorted(base.iterdir()):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name


def test_norms_on_queries_and_keys_are_a_stock_model(text: Path, tmp_path: Path) -> None:
    small.run(text, tmp_path / "out", model={"qk_norm": True})
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert isinstance(model, Qwen3ForCausalLM)
    assert model.model.layers[0].self_attn.q_norm.weight.shape == (8,)


def test_any_config_of_transformers(text: Path, tmp_path: Path) -> None:
    settings = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    made = pretrain(lowdim.Pretraining(**{**small.recipe(text).to_dict(), "model": settings}), out=tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.model_type == "gpt2"
    assert made.facts["recipe"]["model"] == settings


def test_bfloat16_computes_in_it_and_rounds_what_it_trains(text: Path, tmp_path: Path) -> None:
    for precision in ("bfloat16", "pure-bfloat16"):
        small.run(text, tmp_path / precision, precision=precision)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / precision)
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert small.weights(tmp_path / "bfloat16") != small.weights(tmp_path / "pure-bfloat16")


def test_a_model_is_trained_on(base: Path, text: Path, tmp_path: Path) -> None:
    settings = {"model": str(base), "data": {"vocabulary": None}, "steps": 20, "schedule": {"warmup": 0}}
    made = small.run(text, tmp_path / "out", **settings)
    first = json.loads((base / "pretraining.json").read_text())["validation"]["loss"]
    assert made.loss < first - 0.1
    assert made.facts["model"].keys() >= {"model.safetensors"}
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_supervised_fine_tuning_learns_the_answers_alone(base: Path, tmp_path: Path) -> None:
    rows = small.chats(tmp_path / "chats.jsonl")
    data = {"kind": "sft", "source": str(rows), "vocabulary": None, "template": "plain"}
    recipe = small.recipe(rows, data=data, length=48, steps=8, model=str(base))
    made = pretrain(recipe, out=tmp_path / "out")
    prepared = prepare(recipe)
    micro = prepared.text.micro(range(len(prepared.text)))
    answers = "".join(prepared.tokenizer.decode(row[row >= 0]) for row in micro.targets)
    assert "Assistant" not in answers and "User" not in answers and "<|endoftext|>" in answers
    assert made.facts["data"]["train"]["counted"] < made.facts["data"]["train"]["tokens"] / 2
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    assert made.facts["curve"][-1]["loss"] < made.facts["curve"][0]["loss"]


def test_dropout_draws_the_same_whenever_it_goes_on(text: Path, tmp_path: Path) -> None:
    settings = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    recipe = small.recipe(text).model_copy(update={"model": settings})
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one = pretrain(recipe, out=tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    two = pretrain(recipe, out=tmp_path / "b")
    assert one.facts == two.facts and small.losses(tmp_path / "a") == small.losses(tmp_path / "b")


# ---------------------------------------------------------------- going on


GOES_ON: list[dict[str, Any]] = [
    {},
    {"optimizer": {"name": "muon", "lr": 1e-2}, "precision": "bfloat16"},
    {"data": {"pack": False}, "accumulate": 2, "precision": "pure-bfloat16"},
    {"data": {"streaming": True}},
    {"decay": {"name": "alphadecay", "every": 2, "least": 8}, "optimizer": {"name": "adamw", "weight_decay": 0.5}},
]


@pytest.mark.parametrize(("at", "settings"), turns([1, 4], GOES_ON, of=2), ids=str)
def test_it_goes_on_to_the_same_bytes(
    at: int, settings: dict[str, Any], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small.recipe(text, save_seconds=0.0, **settings)
    whole = pretrain(recipe, out=tmp_path / "whole")
    small.interrupt(lambda: pretrain(recipe, out=tmp_path / "out"), at, monkeypatch)
    assert not (tmp_path / "out").exists()
    again = pretrain(recipe, out=tmp_path / "out", resume=True)
    assert again.facts == whole.facts
    assert small.losses(tmp_path / "out") == small.losses(tmp_path / "whole")
    assert small.weights(tmp_path / "out") == small.weights(tmp_path / "whole")
    assert pretrain(recipe, out=tmp_path / "out", resume=True).facts == whole.facts  # it is there already


def test_another_recipe_does_not_go_on(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small.recipe(text, save_seconds=0.0)
    small.interrupt(lambda: pretrain(recipe, out=tmp_path / "out"), 3, monkeypatch)
    kept = {path.name: path.stat().st_size for path in (tmp_path / "out.partial").iterdir()}
    for other in (small.recipe(text, save_seconds=0.0, seed=1), small.recipe(text, save_seconds=0.0, clip=2.0)):
        with pytest.raises(ResumeError, match=r"differs in recipe\.(seed|clip)"):
            pretrain(other, out=tmp_path / "out", resume=True)
    assert {path.name: path.stat().st_size for path in (tmp_path / "out.partial").iterdir()} == kept
    pretrain(recipe, out=tmp_path / "out", resume=True)
    with pytest.raises(ResumeError, match=r"finished run .* differs in recipe\.seed"):
        pretrain(small.recipe(text, save_seconds=0.0, seed=1), out=tmp_path / "out", resume=True)


def test_another_text_does_not_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = small.write(tmp_path / "text.jsonl")
    recipe = small.recipe(source, save_seconds=0.0)
    small.interrupt(lambda: pretrain(recipe, out=tmp_path / "out"), 3, monkeypatch)
    small.write(source, [*small.documents(), "one more document, with more words in it"])
    with pytest.raises(ResumeError, match="differs in data"):
        pretrain(recipe, out=tmp_path / "out", resume=True)


# ---------------------------------------------------------------- what diverges


AT_TEN: dict[str, torch.Tensor] = {}


@pytest.mark.parametrize("killed", [0, 12], ids=["undisturbed", "killed"])
@pytest.mark.parametrize("save_seconds", [0.0, 1e6])
def test_what_diverges_ends_at_the_last_tenth_whatever_the_clock_says(
    save_seconds: float, killed: int, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small.recipe(text, save_seconds=save_seconds, steps=24, evaluation={"every": 100})
    if killed:
        small.interrupt(lambda: pretrain(recipe, out=tmp_path / "out"), killed, monkeypatch)
    check = Run._check

    def broken(run: Run) -> None:
        run.loop._norm = math.nan if run.loop.step == 14 else run.loop._norm
        check(run)

    monkeypatch.setattr(Run, "_check", broken)
    with pytest.warns(
        UserWarning, match=r"at step 15 \(loss .*, gradient norm nan\); the model went back to step 10\. Take a lower"
    ):
        made = pretrain(recipe, out=tmp_path / "out", resume=bool(killed))
    monkeypatch.undo()
    assert made.diverged is not None and made.diverged["back"] == made.facts["steps"] == 10
    assert not (tmp_path / "out.partial").exists()
    assert not list((tmp_path / "out").glob("*good*"))
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    first = AT_TEN or AT_TEN.update(found) or found
    assert all(torch.equal(found[name], first[name]) for name in first)


def test_what_diverges_at_once_ends_as_it_began(text: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="went back to step 0"):
        made = small.run(text, tmp_path / "out", optimizer={"lr": 1e30}, precision="pure-bfloat16", clip=None)
    assert made.diverged is not None and made.diverged["step"] > 1
    assert math.isfinite(made.loss)


def test_what_diverges_without_a_gradient_that_is_left_ends_too(text: Path, tmp_path: Path) -> None:
    rule = {"name": "galore", "rank": 4, "layerwise": True, "lr": 1e30}
    with pytest.warns(UserWarning, match="went back to step 0"):
        made = small.run(text, tmp_path / "out", optimizer=rule, precision="pure-bfloat16", clip=None)
    assert made.diverged is not None and made.diverged["step"] > 1
    assert math.isfinite(made.loss)


# ---------------------------------------------------------------- the plan


def test_the_plan_is_timed_and_writes_nothing(text: Path, tmp_path: Path) -> None:
    found = plan(small.recipe(text))
    assert found.seconds is not None and found.seconds > 0
    assert "6 steps of 6 x 16 tokens: 576 tokens" in found.render()
    assert "min on this machine" in found.render()
    assert not list(tmp_path.iterdir())


def test_tokens_and_one_pass_say_how_long_too(text: Path) -> None:
    assert prepare(small.recipe(text, steps=None, tokens=1000)).steps == 11  # 6 x 16 a step
    one = prepare(small.recipe(text, steps=None))
    assert one.steps == len(one.text) // 6 and one.steps > 3


def test_an_output_that_is_there_is_kept(text: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(LowdimError, match="exists and is not empty"):
        small.run(text, tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
