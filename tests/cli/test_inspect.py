from __future__ import annotations

import json
from pathlib import Path

import pytest


def questions(directory: Path, name: str, choices: int) -> Path:
    path = directory / f"{name}.jsonl"
    lines = [{"question": f"{a} + 1?", "choices": [str(a + i) for i in range(choices)], "label": 1} for a in range(6)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_sparsity_outliers_and_alpha_per_block(run, pruned: Path, text: Path, tmp_path: Path) -> None:
    target = tmp_path / "found.json"
    flags = ["--calibration", text, "--samples", "4", "--context", "32", "--outliers", "2,5"]
    done = run("inspect", pruned, *flags, "--json", target)
    assert done.exit_code == 0, done.output
    found = json.loads(target.read_text())
    assert found["sparsity"]["prunable"] == pytest.approx(0.6, abs=1e-4)
    assert list(found["probes"]["outliers"]) == ["2", "5"]
    assert len(found["probes"]["outliers"]["2"]) == 3
    assert len(found["probes"]["alpha"]) == 21
    assert "Blocks" in done.stdout
    assert "M=5" in done.stdout
    assert "down_proj" not in done.stdout
    assert "Inspect: 3 blocks" in done.stderr


def test_layers_without_text_or_spectra(run, pruned: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in pruned.iterdir()}
    done = run("inspect", pruned, "--calibration", "none", "--no-alpha", "--layers", "--quiet")
    assert done.exit_code == 0, done.output
    assert "model.layers.2.mlp.down_proj" in done.stdout
    assert "No outlier shares" in done.stdout
    assert done.stderr == ""
    assert {path.name: path.read_bytes() for path in pruned.iterdir()} == before


def test_the_essential_sparsity_curve(run, model: Path, text: Path, tmp_path: Path) -> None:
    target = tmp_path / "found.json"
    flags = [
        "--essential",
        "perplexity",
        "--text",
        text,
        "--context",
        "32",
        "--windows",
        "2",
        "--grid",
        "0.3,0.6",
    ]
    done = run("inspect", model, *flags, "--json", target)
    assert done.exit_code == 0, done.output
    found = json.loads(target.read_text())["essential"]
    assert found["grid"] == [0.0, 0.3, 0.6]
    assert len(found["magnitude"]["scores"]) == len(found["random"]["scores"]) == 3
    assert "within 1% of dense" in done.stdout
    assert "Essential sparsity: perplexity" in done.stdout


def test_the_junk_dna_audit(run, model: Path, tmp_path: Path) -> None:
    easy, hard = questions(tmp_path, "easy", 2), questions(tmp_path, "hard", 4)
    target = tmp_path / "found.json"
    done = run("inspect", model, "--junk-dna", f"{easy},{hard}", "--limit", "4", "--grid", "0.5", "--json", target)
    assert done.exit_code == 0, done.output
    found = json.loads(target.read_text())["junk_dna"]
    assert {task["name"] for task in found["tasks"]} == {str(easy), str(hard)}
    assert found["grid"] == [0.0, 0.5]
    assert "Spearman" in done.stdout


@pytest.mark.parametrize(("difficulty", "expected"), [("options", [2, 4]), ("9,1.5", [1.5, 9])])
def test_the_difficulty_of_tasks(run, model: Path, tmp_path: Path, difficulty: str, expected: list[float]) -> None:
    two, four = questions(tmp_path, "two", 2), questions(tmp_path, "four", 4)
    target = tmp_path / "found.json"
    flags = ["--limit", "4", "--grid", "0.5", "--difficulty", difficulty, "--json", target]
    done = run("inspect", model, "--junk-dna", f"{two},{four}", *flags)
    assert done.exit_code == 0, done.output
    found = json.loads(target.read_text())["junk_dna"]
    assert [task["difficulty"] for task in found["tasks"]] == expected


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--calibration", "nowhere.txt"], ["--calibration", "nowhere.txt"]),
        (["--essential", "perplexty"], ["'perplexty'"]),
        (["--junk-dna", "piqa,boolk"], ["'boolk'", "Did you mean 'boolq'?"]),
        (["--essential", "piqa", "--grid", "0.1;0.2"], ["--grid", "'0.1;0.2'", "0.1,0.3"]),
        (["--essential", "piqa", "--grid", "30"], ["--grid", "30", "0.3 for 30%"]),
        (["--junk-dna", "piqa,sciq", "--difficulty", "1"], ["--difficulty", "2 tasks", "'1'"]),
        (["--junk-dna", "piqa,sciq", "--difficulty", "gaps"], ["--difficulty", "'gaps'"]),
        (["--outliers", "five"], ["--outliers", "'five'"]),
        (["--grid", "0.5"], ["--grid changes nothing without an audit"]),
        (["--limit", "5"], ["--limit changes nothing without an audit"]),
        (["--windows", "5"], ["--windows changes nothing without an audit"]),
        (["--difficulty", "options"], ["--difficulty changes nothing without an audit"]),
        (["--bos", "none"], ["--bos changes nothing without an audit"]),
        (["--essential", "piqa", "--samples", "4"], ["--samples changes nothing in an audit"]),
        (["--essential", "piqa", "--no-alpha"], ["--no-alpha changes nothing in an audit"]),
        (["--junk-dna", "piqa", "--layers"], ["--layers changes nothing in an audit"]),
        (["--samples", "0"], ["calibration.samples", "0"]),
    ],
)
def test_refusals_come_before_loading(run, flags: list[str], parts: list[str]) -> None:
    done = run("inspect", "some/model", *flags)
    assert done.exit_code == 2
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr
