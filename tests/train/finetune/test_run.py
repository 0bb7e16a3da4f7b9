"""Fine-tuning: what is trained, what stays, what goes on after a kill, and what the output says of itself."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.train.finetune.small import recipe, run
from tests.train.pretrain import small
from tests.turns import turns
from transformers import AutoModelForCausalLM, AutoTokenizer

import lowdim
from lowdim.core.errors import CheckpointError, LowdimError, RecipeError
from lowdim.core.masks import Masks
from lowdim.data.corpus import preferences
from lowdim.models.disk import manifest
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.verify import verify
from lowdim.train.finetune import changes
from lowdim.train.finetune.api import finetune, plan
from lowdim.train.finetune.goal import Preferred

METHODS = ["lift", "full", "lora", "dora", "random", "magnitude", "smallest"]
pytestmark = pytest.mark.filterwarnings("ignore:.*are ties, which this objective has no place for")


# ---------------------------------------------------------------- zeros


@pytest.mark.parametrize(("method", "objective"), turns(METHODS, ["answers", "todo"], of=2))
def test_zeros_stay_whatever_is_trained(method: str, objective: str, home: Path, tmp_path: Path) -> None:
    if method in ("random", "magnitude", "smallest") and objective == "todo":
        pytest.skip("as lift")
    data = home / ("chats.jsonl" if objective == "answers" else "pairs.jsonl")
    made = run(home / "pruned", data, tmp_path / "out", method=method, objective=objective)
    found = made.changes
    assert (found["pruned"], found["filled"], found["emptied"], found["missing"]) == (14, 0, 0, [])
    assert Masks.load(tmp_path / "out") == Masks.load(home / "pruned")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert Masks.of(stock) == Masks.load(home / "pruned")
    assert sum(found["changed"].values()) > 0
    assert (made.facts["validation"]["loss"] < made.facts["before"]["loss"]) or objective == "todo"


def test_blocks_in_turns_keep_zeros_and_those_that_wait_keep_all(home: Path, tmp_path: Path) -> None:
    more = ["sampling={name: lisa, active: 1, every: 9}", "steps=4"]
    made = run(home / "pruned", home / "chats.jsonl", tmp_path / "out", *more, method="full")
    assert (made.changes["pruned"], made.changes["filled"], made.changes["emptied"]) == (14, 0, 0)
    turns = made.facts["sampling"]["turns"]
    assert sorted(turns) == [0, 1]
    blocks = {name.split(".layers.")[1].split(".")[0] for name in made.changes["changed"] if ".layers." in name}
    assert blocks == {str(turns.index(1))}
    assert (
        "1 of 2 blocks train at a time by lisa"
        in plan(recipe(home / "pruned", home / "chats.jsonl", *more, method="full")).render()
    )
    both = run(
        home / "pruned",
        home / "chats.jsonl",
        tmp_path / "both",
        "sampling={name: lisa, active: 1, every: 1}",
        "steps=8",
        method="full",
    )
    assert min(both.facts["sampling"]["turns"]) > 0 and both.changes["filled"] == 0
    with pytest.raises(RecipeError, match="sampling freezes blocks, which an adapter does anyway"):
        recipe(home / "pruned", home / "chats.jsonl", "sampling=lisa", method="lora")


def test_blocks_in_turns_are_for_one_process(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowdim.models.ranks.size", lambda: 2)
    with pytest.raises(LowdimError, match="Fine-tune in one process, or leave sampling out"):
        plan(recipe(home / "pruned", home / "chats.jsonl", "sampling=lisa", "steps=4", method="full"))
    assert not list(tmp_path.iterdir())


def test_a_packed_model_stays_packed(home: Path, tmp_path: Path) -> None:
    made = run(home / "packed", home / "chats.jsonl", tmp_path / "out")
    dense = run(home / "pruned", home / "chats.jsonl", tmp_path / "dense")
    assert made.facts["storage"] == Checkpoint(tmp_path / "out").storage == "packed"
    assert made.changes == dense.changes and made.changes["zeros"] == 2176
    assert Masks.load(tmp_path / "out") == Masks.load(home / "pruned")
    one, other = Checkpoint(tmp_path / "out"), Checkpoint(tmp_path / "dense")
    assert all(torch.equal(one.read(name), other.read(name)) for name in other.names())
    assert not list((tmp_path / "out").glob(".*"))


def test_zeros_of_embeddings_that_came_by_chance_may_go(home: Path, tmp_path: Path) -> None:
    """The masks are those of pruned layers; without a record they are read from the model."""
    model = tmp_path / "model"
    shutil.copytree(home / "pruned", model)
    (model / "lowdim.json").unlink()
    found = load_file(model / "model.safetensors")
    found["model.embed_tokens.weight"][:, 0] = 0.0
    save_file(found, model / "model.safetensors", {"format": "pt"})
    made = run(model, home / "chats.jsonl", tmp_path / "out", method="full")
    assert (made.changes["pruned"], made.changes["filled"], made.changes["zeros"]) == (14, 0, 2176)
    table = load_file(tmp_path / "out" / "model.safetensors")["model.embed_tokens.weight"]
    assert int((table[:, 0] != 0).sum()) > 0


@pytest.mark.usefixtures("checked_here")
def test_the_record_of_a_pruned_model_goes_on(home: Path, tmp_path: Path) -> None:
    run(home / "pruned", home / "chats.jsonl", tmp_path / "out")
    before, after = manifest.read(home / "pruned"), manifest.read(tmp_path / "out")
    assert after.recipe == before.recipe and after.hashes.masks == before.hashes.masks
    assert after.finetuning is not None and after.finetuning["student"] == str(home / "pruned")
    assert after.evaluation == {} and after.sparsity == before.sparsity
    report = verify(tmp_path / "out")
    assert report.passed, report.checks
    again = run(tmp_path / "out", home / "pairs.jsonl", tmp_path / "again", objective="dpo")
    assert again.changes["filled"] == 0


# ---------------------------------------------------------------- what changes


@pytest.mark.parametrize("narrow", [False, True])
def test_exactly_the_chosen_entries_differ_on_disk(narrow: bool, home: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(home / "dense", model)
    if narrow:
        found = load_file(model / "model.safetensors")
        save_file({k: v.bfloat16() for k, v in found.items()}, model / "model.safetensors", {"format": "pt"})
    made = run(model, home / "chats.jsonl", tmp_path / "out", "optimizer.every=100", "optimizer.lr=0.05")
    was, now = (load_file(place / "model.safetensors") for place in (model, tmp_path / "out"))
    assert {name: tensor.dtype for name, tensor in now.items()} == {name: tensor.dtype for name, tensor in was.items()}
    changed = {name: int((was[name] != now[name]).sum()) for name in was}
    assert {name: count for name, count in changed.items() if count} == made.changes["changed"]
    for name, count in changed.items():
        most = sum(was[name].shape) if "proj" in name else 0
        assert count == most if not narrow else count <= most, name
    assert not list(tmp_path.glob("out/lowdim.json"))  # of a model that was never pruned there is no record


def test_bfloat16_trains_what_is_too_small_for_it(home: Path, tmp_path: Path) -> None:
    made = run(home / "dense", home / "chats.jsonl", tmp_path / "out", "precision=bfloat16", "steps=3")
    assert made.facts["steps"] == 3 and sum(made.changes["changed"].values()) > 0
    full = run(home / "dense", home / "chats.jsonl", tmp_path / "full", "precision=bfloat16", method="full")
    assert full.loss < full.facts["before"]["loss"]


def test_more_changes_than_were_trained_are_refused() -> None:
    found = {"filled": 0, "changed": {"a": 3}}
    changes.check(found, {"a": 3}, {"a", "b"})
    changes.check(found, None, {"a"})
    with pytest.raises(CheckpointError, match="3 entries of a differ from the source, and 0 were trained"):
        changes.check(found, {"b": 9}, {"a", "b"})
    with pytest.raises(CheckpointError, match="more entries differ"):
        changes.check(found, {"stacked": 2}, {"a", "b"})
    with pytest.raises(CheckpointError, match="5 zeros of the pruned model were filled"):
        changes.check({**found, "filled": 5}, None, {"a"})


def test_states_are_counted_as_planned(home: Path, tmp_path: Path) -> None:
    said: list[str] = []
    asked = recipe(home / "dense", home / "chats.jsonl")
    made = finetune(asked, out=tmp_path / "out", announce=said.append)
    trained = made.facts["trained"]
    assert trained["numbers"] == 496 and trained["state"] == 3 * 4 * 496 and trained["full"] == 8 * 14032
    assert made.run["state_bytes"] == trained["state"] + 4 * 14  # and counts of steps
    assert "496 numbers in 14 matrices" in said[0]
    found = plan(asked)
    assert found.seconds and "min on this machine" in found.render()


# ---------------------------------------------------------------- going on


GOES_ON: list[tuple[str, str, list[str]]] = [
    ("lift", "answers", []),
    ("lift", "todo", ["accumulate=2"]),
    ("lora", "dpo", ["adapter.dropout=0.2"]),
    ("dora", "answers", []),
    ("full", "ipo", ["precision=bfloat16"]),
    ("full", "answers", ["sampling=lisa", "sampling.active=1"]),
    ("full", "todo", ["sampling={name: ows, active: 1, every: 2, m: 3.0}"]),
]


@pytest.mark.parametrize(("kind", "at"), turns(GOES_ON, [1, 4], of=7), ids=str)
def test_it_goes_on_to_the_same_bytes(
    kind: tuple[str, str, list[str]], at: int, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, objective, more = kind
    data = home / ("chats.jsonl" if objective == "answers" else "pairs.jsonl")
    asked = recipe(home / "pruned", data, "save_seconds=0", *more, method=method, objective=objective)
    whole = finetune(asked, out=tmp_path / "whole")
    small.interrupt(lambda: finetune(asked, out=tmp_path / "out"), at, monkeypatch)
    assert not (tmp_path / "out").exists()
    referred: list[int] = []
    real = Preferred.refer
    monkeypatch.setattr(Preferred, "refer", lambda *a: referred.append(1) or real(*a))  # type: ignore[func-returns-value]
    again = finetune(asked, out=tmp_path / "out", resume=True)
    assert again.facts == whole.facts and not referred
    assert small.losses(tmp_path / "out") == small.losses(tmp_path / "whole")
    assert small.weights(tmp_path / "out") == small.weights(tmp_path / "whole")
    assert not list((tmp_path / "out").glob(".*"))
    assert finetune(asked, out=tmp_path / "out", resume=True).facts == whole.facts


def test_passes_become_steps(home: Path, tmp_path: Path) -> None:
    asked = recipe(home / "dense", home / "chats.jsonl", "steps=null", "epochs=0.5")
    assert finetune(asked, out=tmp_path / "out").facts["steps"] == int(0.5 * 36 / 4)


# ---------------------------------------------------------------- preferences


def test_the_reference_is_the_model_before_training(home: Path, tmp_path: Path) -> None:
    """So every pair begins at a log-ratio of zero, whatever is trained beside the model."""
    for objective, loss in (("dpo", 0.693147), ("ipo", 25.0)):
        for method in ("lift", "dora"):
            out = tmp_path / f"{objective}-{method}"
            made = run(home / "pruned", home / "pairs.jsonl", out, objective=objective, method=method)
            assert made.facts["before"]["loss"] == pytest.approx(loss, abs=1e-3)
            assert made.facts["before"]["accuracy"] == pytest.approx(0.5, abs=0.5)


def test_preferences_are_learnt(home: Path, tmp_path: Path) -> None:
    more = ["steps=60", "batch=16", "preference.beta=1.0", "optimizer.lr=0.02", "optimizer.budget=4"]
    made = run(home / "dense", home / "pairs.jsonl", tmp_path / "out", *more, objective="todo")
    assert made.accuracy is not None and made.accuracy >= 0.8
    assert made.loss < made.facts["before"]["loss"] - 0.05


def test_ties_are_left_out_where_there_is_no_place_for_them(home: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="18 of 108 pairs are ties"):
        made = run(home / "dense", home / "pairs.jsonl", tmp_path / "out", "steps=2", objective="dpo")
    assert made.facts["data"]["dropped_ties"] == 18 and made.facts["data"]["train"] == {
        "pairs": 90,
        "ties": 0,
        "passed_over": 0,
    }
    more = ["steps=2", "preference.ties=prefer"]
    made = run(home / "dense", home / "pairs.jsonl", tmp_path / "all", *more, objective="dpo")
    assert made.facts["data"]["train"]["ties"] == 18 and "accuracy_with_ties" in made.facts["validation"]


@pytest.mark.parametrize("objective", ["dpo", "ipo"])
def test_ties_alone_judge_nothing(objective: str, home: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (home / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    for name, tie in (("own", False), ("held", True)):
        found = [json.dumps(row) + "\n" for row in rows if row["tie"] is tie]
        (tmp_path / f"{name}.jsonl").write_text("".join(found), encoding="utf-8")
    more = ["steps=2", f"data.validation={tmp_path / 'held.jsonl'}"]
    with pytest.raises(LowdimError, match=r"all \d+ pairs held out are ties, which this objective has no loss for"):
        run(home / "dense", tmp_path / "own.jsonl", tmp_path / "out", *more, objective=objective)
    with pytest.warns(UserWarning, match=r"all \d+ pairs held out are ties: there is no accuracy"):
        made = run(
            home / "dense",
            tmp_path / "own.jsonl",
            tmp_path / "out",
            *more,
            "preference.ties=prefer",
            objective=objective,
        )
    assert made.accuracy is None and made.facts["validation"]["accuracy_with_ties"] >= 0.0
    assert "accuracy" not in made.facts["validation"]


def test_blank_answers_are_passed_over(home: Path, tmp_path: Path) -> None:
    def chat(number: int, answer: str) -> str:
        turns = [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": answer}]
        return json.dumps({"messages": turns}) + "\n"

    own = "".join(chat(number, "" if number < 3 else "Yes.") for number in range(8))
    (tmp_path / "own.jsonl").write_text(own, encoding="utf-8")
    (tmp_path / "held.jsonl").write_text(chat(9, "No."), encoding="utf-8")
    more = ["steps=2", f"data.validation={tmp_path / 'held.jsonl'}"]
    with pytest.warns(UserWarning, match="3 documents are passed over: .*, or their answers are blank"):
        run(home / "dense", tmp_path / "own.jsonl", tmp_path / "out", *more)


# ---------------------------------------------------------------- templates, refusals


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("question", "Question: Is it?\nAnswer: Yes.{end}"),
        ("none", "Is it?Yes.{end}"),
        ("plain", "User:\nIs it?{end}\nAssistant:\nYes.{end}\n"),
    ],
)
def test_templates_write_what_they_say(template: str, text: str, home: Path, tmp_path: Path) -> None:
    rows = [{"question": "Is it?", "answer": "Yes."}, {"question": "Was it?", "answer": "No."}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = ["steps=2", "batch=1", "data.validation=0.5", f"data.template={template}"]
    run(home / "dense", tmp_path / "rows.jsonl", tmp_path / "out", *more)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    chat = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "Yes."}]
    written = tokenizer.apply_chat_template(chat, tokenize=False)
    assert written == text.format(end=tokenizer.eos_token)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["optimizer.budget=9"], r"budget=9 asks for 288 entries of a matrix of 16 x 16, which has 256"),
        (["optimizer.budget=6"], r"of which 128 are not zero\. Take at most budget=4"),
        (["optimizer.rank=17"], "rank=17 exceeds the smaller side of a matrix of 16 x 16"),
        (["data.kind=preferences"], "Leave data.kind out"),
        (["parallel=fsdp"], "parallel has to be 'ddp'"),
        (["placement=lns"], "placement moves the norms"),
        (["adapter=lora"], "leave adapter out"),
        (["from-scratch=fst"], "unknown key 'from-scratch'|from-scratch and rank are for models that are pre-trained"),
        (["rank=uniform"], "unknown key 'rank'|from-scratch and rank are for models that are pre-trained"),
        (["sampling=lisa"], "this optimizer chooses what it trains by itself"),
        (["steps=2", "tokens=100"], "steps and tokens"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    given: list[str], said: str, home: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=said):
        run(home / "pruned", home / "chats.jsonl", tmp_path / "out", *given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_an_adapter_of_a_rank_that_a_layer_cannot_have_is_refused(method: str, home: Path, tmp_path: Path) -> None:
    said = r"adapter\.rank=17 exceeds the smaller side of a matrix of 16 x 16, .*\. Take at most adapter\.rank=16\."
    with pytest.raises(RecipeError, match=said):
        run(home / "pruned", home / "chats.jsonl", tmp_path / "out", "adapter.rank=17", method=method)
    assert not list(tmp_path.iterdir())


def test_a_margin_of_zero_has_no_ties(home: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="alpha is 0, where a tie has the probability 0, and 18 pairs are ties"):
        run(home / "dense", home / "pairs.jsonl", tmp_path / "out", "preference.alpha=0", objective="todo")


def test_pairs_held_out_that_do_not_say_whether_they_are_ties(home: Path, tmp_path: Path) -> None:
    """An objective that knows ties is judged by them too; to another one it is all the same."""
    for name, first in (("silent", 0), ("pairs", 60)):
        lines = (home / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines[first : first + 60]), encoding="utf-8")
    more = ["steps=2", f"data.validation={tmp_path / 'silent.jsonl'}"]
    with pytest.raises(LowdimError, match=r"silent\.jsonl has no field 'tie', and this objective learns from ties"):
        run(home / "dense", tmp_path / "pairs.jsonl", tmp_path / "out", *more, objective="todo")
    assert not (tmp_path / "out").exists()
    made = run(home / "dense", tmp_path / "pairs.jsonl", tmp_path / "out", *more, objective="dpo")
    assert made.facts["data"]["validation"]["ties"] == 0


def test_without_ties_and_margin_todo_trains_as_dpo_does(home: Path, tmp_path: Path) -> None:
    rows = preferences.records(preferences.synthetic(60, ties=0.0))
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    more = {"todo": ["preference.alpha=0", "preference.beta=0.5"], "dpo": ["preference.beta=0.5"]}
    made = {
        name: run(home / "dense", data, tmp_path / name, *given, "steps=12", objective=name)
        for name, given in more.items()
    }
    told = {
        name: [each for line in small.losses(tmp_path / name) for each in line if each is not None] for name in more
    }
    assert told["todo"] == pytest.approx(told["dpo"], rel=1e-5) and len(told["dpo"]) >= 36
    assert made["todo"].loss == pytest.approx(made["dpo"].loss, rel=1e-5) and made["dpo"].loss < math.log(2) - 1e-3
    assert made["todo"].accuracy == made["dpo"].accuracy


def test_a_margin_of_zero_has_no_ties_held_out_either(home: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (home / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    for name, found in (("own", [row for row in rows[:60] if not row["tie"]]), ("held", rows[60:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    more = ["preference.alpha=0", f"data.validation={tmp_path / 'held.jsonl'}"]
    with pytest.raises(RecipeError, match=r"where a tie has the probability 0, and \d+ pairs are ties"):
        run(home / "dense", tmp_path / "own.jsonl", tmp_path / "out", *more, objective="todo")


def test_answers_too_long_are_passed_over_or_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(LowdimError, match="no pair has both answers within length=2"):
        run(home / "dense", home / "pairs.jsonl", tmp_path / "out", "length=2", objective="todo")


def test_rounded_weights_are_refused(home: Path, tmp_path: Path) -> None:
    rounded = lowdim.Recipe(sparsity=0.5, method="magnitude", quantize="int8", evaluation={"text": None})
    lowdim.prune(str(home / "dense"), rounded, out=tmp_path / "int8")
    with pytest.raises(LowdimError, match="rounded to int8; training moves them off that grid"):
        run(tmp_path / "int8", home / "chats.jsonl", tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()
