"""The page of a pre-training: what it says of a made-up run, what it draws, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests.report.pretrain import made

from lowdim.core.errors import CheckpointError
from lowdim.report.build import build
from lowdim.report.pretrain.page import render, verdict
from lowdim.report.pretrain.pictures import pictures

DIVERGED = {"step": 7, "norm": "nan", "loss": "inf", "back": 3}


def test_the_page_has_every_number_of_the_run(tmp_path: Path) -> None:
    page = build(made.write(tmp_path / "smol"))
    text = page.read_text()
    assert page == tmp_path / "smol.html"
    for said in (
        "9m, changed",
        "74,016 parameters",
        "Validation loss 4.00 nats per token, perplexity 54.8, after 300 steps on 30,000 tokens.",
        "learning rate</i> 0.003",
        "2,147",
        "3.1%",
        "600 MB",
        "of the largest of 2 processes",
        "1 min 5 s",
        "The Curse of Depth",
        "arXiv:2502.05795",
        "num_hidden_layers: 12",
        "lowdim pretrain --recipe r.yaml --out smol",
        "lowdim pretrain --recipe recipe.yaml --out smol",
    ):
        assert said in text, said
    assert text.count("<svg") == 4
    assert "diverged</h2>" not in text
    assert "//" not in re.sub(r'https://arxiv\.org|xmlns[^ ]*="[^"]*"', "", text)


def test_what_acts_on_blocks_and_layers_is_named_with_its_paper() -> None:
    facts = made.facts()
    facts["recipe"] |= {"sampling": {"name": "lisa"}, "from-scratch": {"name": "s-ste"}}
    text = render(facts, {}, [])
    for said in ("sampling</i> lisa", "from-scratch</i> s-ste", "<small>from-scratch</small>", "arXiv:2403.17919"):
        assert said in text, said
    assert "rank</i>" not in text
    for key in ("sampling", "from-scratch", "rank"):  # which runs of before do not have
        del facts["recipe"][key]
    assert "sampling" not in render(facts, {}, [])


def test_the_pictures_show_what_the_log_says() -> None:
    found = {picture.title: picture for picture in pictures(made.facts(), made.RUN, made.log())}
    assert list(found) == ["How it learns", "Gradient norm", "Learning rate", "Throughput"]
    assert "validation, step 300: 4" in found["How it learns"].svg
    assert "A point is the mean of 2 steps." in found["How it learns"].caption
    assert ">clip<" in found["Gradient norm"].svg
    assert "before it is clipped" in found["Gradient norm"].caption
    assert "3.1% of the matmul peak" in found["Throughput"].caption


def test_without_a_clip_there_is_no_line_of_one() -> None:
    facts = made.facts()
    facts["recipe"]["clip"] = None
    norm = next(p for p in pictures(facts, {}, made.log()) if p.title == "Gradient norm")
    assert ">clip<" not in norm.svg and "not clipped" in norm.caption


def test_what_diverged_is_said_to_have_diverged() -> None:
    page = render(made.facts(diverged=DIVERGED), made.RUN, made.log())
    assert "Training diverged at step 7. Validation loss" in page
    assert "At step 7 the loss was inf and the gradient&#39;s norm nan." in page
    assert "the model is that of step 3" in page


def test_a_loss_that_ends_above_a_uniform_guess_has_diverged_too() -> None:
    page = render(made.facts(diverged={"step": 300, "loss": 9.57, "uniform": 5.704}), made.RUN, made.log())
    assert "Training diverged and ends above a uniform guess. Validation loss" in page
    assert "diverged</h2>" in page and "at the end it is 9.57 nats per token, above 5.70" in page


def test_a_loss_that_rose_again_is_told() -> None:
    facts = made.facts()
    facts["curve"][-1]["loss"] = 4.5
    assert verdict(facts).endswith("It was lowest, 4.00, at step 200.")
    assert "lowest" not in verdict(made.facts())


def test_a_run_that_was_moved_without_its_log(tmp_path: Path) -> None:
    out = made.write(tmp_path / "smol")
    for ending in ("log.jsonl", "run.json"):
        (tmp_path / f"smol.{ending}").unlink()
    text = build(out).read_text()
    assert "The log is missing" in text
    assert text.count("<svg") == 1  # the evaluations are in the directory itself
    assert "utilisation" not in text


def test_a_log_with_numbers_that_are_none(tmp_path: Path) -> None:
    lines = [*made.log(6), {"step": 7, "loss": float("nan"), "lr": 1.0, "norm": float("inf"), "tokens_per_s": 1.0}]
    text = build(made.write(tmp_path / "smol", lines=lines)).read_text()
    assert "nan" not in "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))


def test_evil_names_are_text() -> None:
    facts = made.facts()
    facts["recipe"]["model"] = "<script>alert(1)</script>"
    page = render(facts, {}, [])
    assert "<script>" not in page and "&lt;script&gt;" in page


@pytest.mark.parametrize(("changed", "said"), [({"schema": 9}, "schema 9"), ({"curve": 3}, "damaged"), ({}, "")])
def test_what_is_not_of_this_version_is_refused(tmp_path: Path, changed: dict[str, object], said: str) -> None:
    out = made.write(tmp_path / "smol", made.facts(**changed))
    if not changed:
        (out / "pretraining.json").write_text(json.dumps({"schema": 1}))
        said = "is not what `lowdim pretrain` writes"
    with pytest.raises(CheckpointError, match=said):
        build(out)
    assert not (tmp_path / "smol.html").exists()


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    out = made.write(tmp_path / "smol")
    assert build(out).read_bytes() == build(out).read_bytes()
