"""Recovery moves a pruned model towards its teacher and leaves its zeros where they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.evaluate.conftest import build_tokenizer
from tests.pipeline.recover import small
from tests.prune import tiny
from tests.turns import turns
from torch import Tensor
from transformers import AutoModelForCausalLM

import lowdim
from lowdim.core.errors import RecipeError
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.convert import convert
from lowdim.models.load import load, quiet
from lowdim.models.walk.stream import Block
from lowdim.nn.slorb import slorb_of
from lowdim.pipeline.recover.api import _Run, plan, recover
from lowdim.pipeline.recover.fit import Example, Fitter
from lowdim.prune.api import prune
from lowdim.runs.fingerprint import ResumeError

Saved = Callable[[str], Path]
Pruned = Callable[..., Path]


def changed(one: Path, other: Path) -> set[str]:
    before, after = tiny.stored(one), tiny.stored(other)
    assert before.keys() == after.keys()
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


@torch.no_grad()
def distance(path: Path, teacher: Path) -> float:
    """Return the mean KL divergence of a model from its teacher on other text than it was trained on."""
    text = tiny.tokens(samples=8, seed=7)
    own, other = (load(place)(input_ids=text).logits.double().log_softmax(-1) for place in (path, teacher))
    return float((other.exp() * (other - own)).sum(-1).mean())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral"])
def test_blocks_come_nearer_to_the_dense_ones(kind: str, saved: Saved, pruned: Pruned, tmp_path: Path) -> None:
    made = small.run(pruned(kind), tmp_path / "out", stage="blocks")
    fits = made.manifest["recovery"]["blocks"]
    assert [*fits] == [str(index) for index in range(len(fits))]
    assert all(fit["after"] < 0.95 * fit["before"] for fit in fits.values())
    assert small.same_zeros(pruned(kind), made.out)
    assert made.sparsity == pytest.approx(0.5, abs=1e-3)
    moved = changed(pruned(kind), made.out)
    assert any("norm" in name or "ln_" in name for name in moved)
    assert not any("embed" in name or "wte" in name or "lm_head" in name or "gate.weight" in name for name in moved)
    assert distance(made.out, saved(kind)) < distance(pruned(kind), saved(kind))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral"])
def test_the_whole_model_comes_nearer_to_its_teacher(kind: str, saved: Saved, pruned: Pruned, tmp_path: Path) -> None:
    made = small.run(pruned(kind), tmp_path / "out", stage="distill")
    held = made.manifest["recovery"]["distill"]
    assert held["after"] < 0.9 * held["before"]
    assert small.same_zeros(pruned(kind), made.out)
    assert distance(made.out, saved(kind)) < distance(pruned(kind), saved(kind))


def test_stock_transformers_loads_what_comes_out(pruned: Pruned, tmp_path: Path) -> None:
    made = small.run(pruned("llama"), tmp_path / "out")
    with quiet():
        stock = AutoModelForCausalLM.from_pretrained(made.out)
    assert torch.equal(stock(input_ids=tiny.tokens()).logits, load(made.out)(input_ids=tiny.tokens()).logits)


def test_the_second_stage_goes_on_from_the_first(saved: Saved, pruned: Pruned, tmp_path: Path) -> None:
    first = small.run(pruned("llama"), tmp_path / "first", stage="blocks")
    both = small.run(pruned("llama"), tmp_path / "both")
    alone = small.run(first.out, tmp_path / "alone", stage="distill")
    assert both.manifest["recovery"]["blocks"] == first.manifest["recovery"]["blocks"]
    assert both.manifest["recovery"]["distill"] == alone.manifest["recovery"]["distill"]
    assert changed(both.out, alone.out) == set()


def test_the_record_names_the_dense_model_and_both_texts(saved: Saved, pruned: Pruned, tmp_path: Path) -> None:
    made = small.run(pruned("llama"), tmp_path / "out", stage="blocks").manifest
    assert made["model"]["source"] == str(saved("llama")) == made["recovery"]["teacher"]
    assert made["recovery"]["student"] == str(pruned("llama"))
    assert made["recovery"]["data"]["tokens"] == small.TEXT.numel()
    assert made["recipe"]["sparsity"] == 0.5 and made["sparsity"]["target"] == 0.5


@pytest.mark.parametrize(
    "settings",
    [
        {"blocks": {"inputs": "dense"}},
        {"blocks": {"targets": "recovered"}},
        {"blocks": {"lr": 1e-3}},
        {"blocks": {"passes": 2}},
        {"blocks": {"patience": 1, "lr": 0.3}},
        {"calibration": {"held": 0.5}},
        {"batch_tokens": 32},
        {"seed": 1},
    ],
)
def test_every_setting_of_the_first_stage_changes_what_is_written(
    settings: dict[str, Any], pruned: Pruned, tmp_path: Path
) -> None:
    plain = {"blocks": {"patience": 8, "lr": 0.3}} if "patience" in settings.get("blocks", {}) else {}
    one = small.run(pruned("llama"), tmp_path / "one", stage="blocks", **plain)
    other = small.run(pruned("llama"), tmp_path / "other", stage="blocks", **settings)
    assert one.manifest["recovery"]["blocks"] != other.manifest["recovery"]["blocks"]


@pytest.mark.parametrize(
    "settings",
    [
        {"kl": 0.0, "ce": 1.0},
        {"hidden": 1.0},
        {"temperature": 2.0},
        {"clip": 0.01},
        {"sequences": 8},
        {"passes": 4},
        {"lr": 1e-3},
    ],
)
def test_every_setting_of_the_second_stage_changes_what_is_written(
    settings: dict[str, Any], pruned: Pruned, tmp_path: Path
) -> None:
    one = small.run(pruned("llama"), tmp_path / "one", stage="distill")
    other = small.run(pruned("llama"), tmp_path / "other", stage="distill", distill=settings)
    assert changed(one.out, other.out)


def test_activations_computed_twice_give_the_same_model(pruned: Pruned, tmp_path: Path) -> None:
    one = small.run(pruned("llama"), tmp_path / "one", stage="distill", distill={"passes": 1})
    again = small.run(
        pruned("llama"), tmp_path / "again", stage="distill", distill={"passes": 1, "checkpointing": True}
    )
    for name, tensor in tiny.stored(one.out).items():
        assert torch.allclose(tensor, tiny.stored(again.out)[name], atol=1e-5)


@pytest.mark.parametrize(("bits", "stage"), turns(["int8", "int4"], ["blocks", "distill", "both"], of=2))
def test_what_is_written_is_what_was_trained_through_the_grid(
    bits: str, stage: str, saved: Saved, pruned: Pruned, tmp_path: Path
) -> None:
    made = small.run(pruned("llama"), tmp_path / "out", stage=stage, quantize=bits)
    plain = small.run(pruned("llama"), tmp_path / "plain", stage=stage, quantize=bits, blocks=DONE, distill=DONE)
    checkpoint = Checkpoint(made.out)
    assert made.manifest["storage"] == "packed"
    for name in made.manifest["layers"]:
        form = checkpoint.form(f"{name}.weight")
        assert form is not None and form.grid is not None and form.grid.name == bits
    assert small.same_zeros(pruned("llama"), made.out)
    assert made.manifest["fallbacks"] == []
    assert distance(made.out, saved("llama")) < distance(plain.out, saved("llama"))


DONE = {"lr": 1e-12, "passes": 0.01}
"""Rates and passes with which nothing moves."""


@pytest.mark.parametrize("stage", ["blocks", "distill"])
@pytest.mark.parametrize("bits", ["int8", "int4", "int3"])
def test_a_dense_model_is_trained_through_the_grid_as_well(bits: str, stage: str, saved: Saved, tmp_path: Path) -> None:
    dense, gentle = saved("llama"), {"lr": 3e-4}
    made = small.run(
        dense, tmp_path / "out", teacher=str(dense), quantize=bits, stage=stage, blocks=gentle, distill=gentle
    )
    found = made.manifest["recovery"]
    for fit in [*found["blocks"].values(), *filter(None, [found["distill"]])]:
        assert fit["after"] < fit["before"] or (bits == "int8" and fit["after"] == fit["before"])
    form = Checkpoint(made.out).form("model.layers.0.mlp.up_proj.weight")
    assert form is not None and form.grid is not None and form.grid.name == bits and not form.masked
    assert made.manifest["fallbacks"] == []


def test_three_bits_are_for_models_without_pruned_weights(pruned: Pruned, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"q_proj has pruned weights.*int4"):
        small.run(pruned("llama"), tmp_path / "out", quantize="int3")


def test_a_packed_model_is_recovered_as_its_dense_form_is(pruned: Pruned, tmp_path: Path) -> None:
    dense = small.run(pruned("llama"), tmp_path / "dense")
    packed = small.run(pruned("llama", storage="packed"), tmp_path / "packed")
    assert packed.manifest["storage"] == "packed"
    before, after = tiny.stored(dense.out), tiny.stored(packed.out)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_model_in_memory_is_left_as_it_is(saved: Saved, pruned: Pruned, tmp_path: Path) -> None:
    model = load(pruned("llama"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made = recover(
        model, small.recipe(stage="blocks"), out=tmp_path / "out", teacher=saved("llama"), calibration=small.TEXT
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert distance(made.out, saved("llama")) < distance(pruned("llama"), saved("llama"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.run.json"]


def test_a_finished_recovery_can_be_recovered_further(saved: Saved, pruned: Pruned, tmp_path: Path) -> None:
    first = small.run(pruned("llama"), tmp_path / "first", stage="distill")
    second = small.run(first.out, tmp_path / "second", stage="distill", seed=1)
    held = [made.manifest["recovery"]["distill"] for made in (first, second)]
    assert held[1]["after"] < held[1]["before"] == pytest.approx(held[0]["after"], rel=0.2)


def test_minutes_decide_the_steps_and_the_plan_says_them(pruned: Pruned, tmp_path: Path) -> None:
    said: list[str] = []
    recipe = small.recipe(minutes=0.1)
    made = recover(pruned("llama"), recipe, out=tmp_path / "out", calibration=small.TEXT, announce=said.append)
    stages = made.manifest["recovery"]["stages"]
    assert stages["blocks"]["steps"] > 8 and stages["distill"]["steps"] > 8
    assert f"{stages['blocks']['steps']} steps for every block" in said[0]
    assert "min on this machine" in said[0]
    assert plan(pruned("llama"), small.recipe(), calibration=small.TEXT).stages["blocks"].steps == 6 * 4


def test_nothing_is_worse_than_it_was(pruned: Pruned, tmp_path: Path) -> None:
    wild: dict[str, Any] = {"lr": 30.0, "clip": 1e9}
    made = small.run(pruned("llama"), tmp_path / "out", blocks={"lr": 30.0}, distill=wild).manifest["recovery"]
    assert all(fit["after"] <= fit["before"] for fit in made["blocks"].values())
    assert made["distill"]["after"] <= made["distill"]["before"]
    assert made["note"]


def test_masks_that_moved_for_nothing_move_back(two_four: Pruned, tmp_path: Path) -> None:
    wild: dict[str, Any] = {"lr": 30.0, "clip": 1e9}
    made = small.run(two_four("llama"), tmp_path / "out", stage="distill", masks=adaptive(), distill=wild)
    note = made.manifest["recovery"]["note"]
    assert "undone" in note or "went back to step 0" in note  # whether the weights survive it is the processor's
    assert changed(two_four("llama"), made.out) == set()


def test_masks_that_would_not_move_are_refused_before_the_first_stage(two_four: Pruned, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="never move in a run of"):
        small.run(two_four("llama"), tmp_path / "out", masks=adaptive(every=1000))
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("lost", ["loss", "gradient"])
@pytest.mark.parametrize(("passes", "step", "back"), [(3, 8, 0), (10, 20, 0), (10, 33, 20)])
def test_a_step_that_is_not_finite_goes_back_by_steps_and_not_by_the_clock(
    lost: str, passes: int, step: int, back: int, pruned: Pruned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.lose(monkeypatch.setattr, lost, step)
    outs = []
    for seconds in (0.0, 1e9):
        settings: dict[str, Any] = {"stage": "distill", "distill": {"passes": passes}, "save_seconds": seconds}
        made = small.run(pruned("llama"), tmp_path / f"out-{seconds}", **settings)
        note = made.manifest["recovery"]["note"]
        assert f"gradient of step {step} was not finite; training went back to step {back}" in note
        assert made.manifest["recovery"]["distill"]["steps"] == back
        outs.append(tiny.stored(made.out))
    assert all(bool(tensor.isfinite().all()) for tensor in outs[0].values())
    assert all(torch.equal(tensor, outs[1][name]) for name, tensor in outs[0].items())
    assert small.same_zeros(pruned("llama"), tmp_path / "out-0.0")


def test_a_block_whose_loss_is_not_finite_keeps_its_best_state_and_says_so(
    pruned: Pruned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Fitter.loss, list[int]()

    def loss(self: Fitter, block: Block, example: Example) -> torch.Tensor:
        made = real(self, block, example)
        calls.append(block.index)
        training = torch.is_grad_enabled() and block.index == 1
        return made * float("nan") if training and calls.count(1) > 12 else made

    monkeypatch.setattr(Fitter, "loss", loss)
    made = small.run(pruned("llama"), tmp_path / "out", stage="blocks")
    recovery = made.manifest["recovery"]
    assert recovery["note"].startswith("block 1: its loss was not finite by step ")
    fit = recovery["blocks"]["1"]
    assert fit["after"] <= fit["before"] and set(fit) == {"before", "after", "steps"}
    assert all(bool(tensor.isfinite().all()) for tensor in tiny.stored(made.out).values())


@pytest.mark.parametrize("stage", ["blocks", "distill"])
def test_the_few_zeros_of_a_layer_that_was_pruned_stay(stage: str, saved: Saved, tmp_path: Path) -> None:
    other = load(saved("llama"))
    with torch.no_grad():
        for parameter in other.model.layers.parameters():
            parameter.mul_(1.2)
    other.save_pretrained(tmp_path / "other")
    few = tiny.recipe(method="magnitude", sparsity=0.004)
    student = prune(str(tmp_path / "other"), few, calibration=tiny.tokens(), out=tmp_path / "few").out
    made = small.run(student, tmp_path / "out", stage=stage, teacher=str(saved("llama")))
    before, after = small.zeros(student), small.zeros(made.out)
    assert 0 < sum(int(mask.sum()) for mask in before.values()) < 0.01 * sum(mask.numel() for mask in before.values())
    assert all(bool((mask <= after[name]).all()) for name, mask in before.items())
    assert changed(student, made.out)


def adaptive(**settings: Any) -> dict[str, Any]:
    return {"name": "ast", "every": 2, "decay": 1e-3, **settings}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_masks_move_and_stay_of_the_pattern(kind: str, saved: Saved, two_four: Pruned, tmp_path: Path) -> None:
    student = two_four(kind)
    made = small.run(student, tmp_path / "out", masks=adaptive())
    before, after = small.zeros(student), small.zeros(made.out)
    assert any(not torch.equal(mask, after[name]) for name, mask in before.items())
    for name, mask in after.items():
        laid_out = mask.t() if kind == "gpt2" else mask
        assert bool((laid_out.reshape(len(laid_out), -1, 4).sum(-1) == 2).all()), name
    flips = made.manifest["recovery"]["masks"]
    assert flips[0]["step"] == 2 and any(update["flipped"] > 0 for update in flips)
    assert distance(made.out, saved(kind)) < distance(student, saved(kind))


@pytest.mark.parametrize(("kind", "score"), [("llama", "wanda"), ("mixtral", "magnitude")])
def test_moving_masks_keep_as_many_weights_in_every_layer(
    kind: str, score: str, pruned: Pruned, tmp_path: Path
) -> None:
    made = small.run(pruned(kind), tmp_path / "out", stage="distill", masks=adaptive(score=score))
    before, after = small.zeros(pruned(kind)), small.zeros(made.out)
    assert any(not torch.equal(mask, after[name]) for name, mask in before.items())
    assert counts(before) == counts(after)


def counts(zeros: dict[str, Tensor]) -> dict[str, int]:
    """Return the zeros of each matrix in memory, in which two of an expert's on disk are one."""
    found: dict[str, int] = {}
    for name, mask in zeros.items():
        joined = name.replace(".w3.", ".w1.")
        found[joined] = found.get(joined, 0) + int(mask.sum())
    return found


@pytest.mark.parametrize("storage", ["dense", "packed"])
def test_what_stands_beside_the_layers_is_counted_saved_and_compared(
    storage: str, two_four: Pruned, tmp_path: Path
) -> None:
    student = two_four("llama")
    student = student if storage == "dense" else convert(student, tmp_path / "packed", storage)
    made = small.run(student, tmp_path / "out", stage="distill", masks=adaptive(slorb=4))
    manifest = made.manifest
    assert manifest["slorb"]["layers"] == len(manifest["layers"])
    assert manifest["slorb"]["nbytes"] > 0 and manifest["storage"] == "packed"
    model = lowdim.load(made.out)
    beside = slorb_of(model)
    assert len(beside) == manifest["slorb"]["layers"]
    assert all(bool(each.s.any()) for each in beside.values())
    with quiet(), pytest.raises(OSError, match="no file named"):
        AutoModelForCausalLM.from_pretrained(made.out)


@pytest.mark.parametrize(("stage", "kind"), turns(["blocks", "distill"], ["llama", "mixtral"], of=2))
def test_what_stands_in_padding_is_no_matter(stage: str, kind: str, pruned: Pruned, tmp_path: Path) -> None:
    made = []
    for fill in (0, 5):
        ids, mask = small.TEXT.clone(), torch.ones_like(small.TEXT)
        mask[::3, :6] = 0
        ids[mask == 0] = fill
        out, text = tmp_path / str(fill), [{"input_ids": ids, "attention_mask": mask}]
        recover(pruned(kind), small.recipe(stage=stage), out=out, calibration=text)
        made.append(out)
    one, other = map(tiny.stored, made)
    assert all(torch.allclose(tensor, other[name], atol=1e-5) for name, tensor in one.items())


@pytest.mark.parametrize("what", ["text", "tasks"])
def test_what_is_measured_on_may_change_before_a_run_goes_on(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = tiny.save(tmp_path / "in", "llama")
    build_tokenizer().save_pretrained(dense)
    student = prune(str(dense), tiny.recipe(method="magnitude", sparsity=0.5), out=tmp_path / "student").out
    assert student is not None
    file = tmp_path / ("eval.txt" if what == "text" else "eval.jsonl")
    asked = small.recipe(stage="blocks", evaluation={"text": None} | {what: str(file), "context": 16})

    def write(word: str) -> None:
        rows = [json.dumps({"question": f"{word} {i}", "choices": ["a", "b"], "label": 0}) for i in range(3)]
        file.write_text(f"{word} cat. " * 99 if what == "text" else "\n".join(rows))

    def go(out: str, resume: bool = False) -> dict[str, Any]:
        return recover(student, asked, out=tmp_path / out, calibration=small.TEXT, resume=resume).manifest

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    write("the")
    with monkeypatch.context() as patch:
        patch.setattr(_Run, "_stages", interrupted)
        with pytest.raises(KeyboardInterrupt):
            go("out")
    write("a")
    found = go("out", resume=True)
    assert found["evaluation"] == go("whole")["evaluation"]
    assert go("out", resume=True) == found
    write("one")  # what is finished is not measured again
    with pytest.raises(ResumeError, match=r"finished run .* differs in evaluation\.(text|questions\..*eval\.jsonl)\."):
        go("out", resume=True)
