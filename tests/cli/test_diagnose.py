"""``lowdim diagnose`` from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest


@pytest.fixture
def flags(text: Path) -> list[str | Path]:
    return ["--text", text, "--context", "32", "--windows", "4"]


def test_table_json_and_page(run, model: Path, flags, tmp_path: Path) -> None:
    target, page = tmp_path / "found.json", tmp_path / "found.html"
    done = run("diagnose", model, *flags, "--json", target, "--html", page)
    assert done.exit_code == 0, done.output
    found = json.loads(target.read_text())
    assert len(found["blocks"]) == 3
    assert all(block["sensitivity"] is not None and block["gradient"] > 0 for block in found["blocks"])
    assert len(found["layers"]) == 21
    assert found["depth"]["halves"]["influence"]["deeper"] > 0
    assert "Loss added by leaving out one block" in done.stdout
    assert "without it, nats" in done.stdout
    assert f"Report: {page}" in done.stdout
    assert page.read_text().count("<svg") == 8
    assert "3 blocks on 4 windows of 32 tokens of" in done.stderr
    assert "6 passes through a block and 1 way back" in done.stderr


def test_the_built_in_text_is_said_to_be_that(run, model: Path, monkeypatch: pytest.MonkeyPatch, text: Path) -> None:
    from lowdim.data import windows
    from lowdim.data.text import Document

    monkeypatch.setattr(windows, "_documents", lambda source: (source, [Document(text=text.read_text())]))
    done = run("diagnose", model, "--context", "32", "--windows", "1", "--measures", "spectra")
    assert done.exit_code == 0, done.output
    assert "1 windows of 32 tokens of the built-in text (Wikipedia)" in done.stderr


def test_the_checkpoints_of_a_run(run, model: Path, flags, tmp_path: Path) -> None:
    for name in ("step-10", "step-9"):
        shutil.copytree(model, tmp_path / "run" / name)
    target = tmp_path / "found.json"
    done = run("diagnose", tmp_path / "run", *flags, "--measures", "jacobian", "--json", target, "--quiet")
    assert done.exit_code == 0, done.output
    found = json.loads(target.read_text())["models"]
    assert [Path(each["model"]).name for each in found] == ["step-9", "step-10"]
    assert found[0]["blocks"] == found[1]["blocks"]
    assert done.stderr == ""


def test_a_run_that_kept_models_is_followed_over_its_steps(run, model: Path, flags, tmp_path: Path) -> None:
    out, target, page = tmp_path / "out", tmp_path / "found.json", tmp_path / "found.html"
    shutil.copytree(model, out)
    for step in (4, 12):
        shutil.copytree(model, out / "checkpoints" / f"step-{step}")
    flags = [*flags, "--measures", "gradients", "--json", target, "--html", page, "--quiet"]
    assert run("diagnose", out, *flags).exit_code == 0
    assert "models" not in json.loads(target.read_text())  # a model with folders in it, and no run
    (out / "pretraining.json").write_text(json.dumps({"steps": 20}))
    done = run("diagnose", out, *flags)
    assert done.exit_code == 0, done.output
    found = json.loads(target.read_text())["models"]
    assert [(Path(each["model"]).name, each["step"]) for each in found] == [("step-4", 4), ("step-12", 12), ("out", 20)]
    for title in (
        "Perplexity, over the run",
        "Gradient, last block over first, over the run",
        "Block influence, over the run",
    ):
        assert title in page.read_text()
    assert "Jacobian" not in page.read_text()


@pytest.mark.parametrize(
    ("extra", "code", "said"),
    [
        (["--measures", "drops"], 2, "unknown measure 'drops'. Did you mean 'drop'?"),
        (["--windows", "0"], 2, "windows must be a whole number of at least 1; got 0"),
        (["--context", "1"], 2, "context must be a whole number of at least 2"),
        (["--context", "0"], 2, "context must be a whole number of at least 2"),
        (["--context", "500"], 1, "context=500 is longer than the model's 128 positions"),
        (["--text", "nowhere.txt"], 2, "--text: there is no file 'nowhere.txt'"),
        (["--html", "nowhere/page.html"], 2, "--html: there is no folder nowhere"),
        (["--bos", "never"], 1, "bos"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(run, model: Path, flags, extra: list[str], code: int, said: str) -> None:
    done = run("diagnose", model, *flags, *extra)
    assert done.exit_code == code
    assert said in " ".join(done.stderr.split())
    assert "Blocks:" not in done.stderr


def test_a_folder_without_a_model(run, tmp_path: Path) -> None:
    done = run("diagnose", tmp_path)
    assert done.exit_code == 1
    assert "holds no config.json" in done.stderr


def test_damaged_weights_are_named(run, model: Path, flags, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, tmp_path / "bad")
    file = tmp_path / "bad" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.self_attn.q_proj.weight"][0, 0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    done = run("diagnose", tmp_path / "bad", *flags)
    assert done.exit_code == 1
    assert "'model.layers.1.self_attn.q_proj.weight' holds NaN" in done.stderr
