from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.train.pretrain import small


def test_it_prints_and_writes_what_it_found(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWDIM_CACHE", str(tmp_path / "cache"))
    recipe = tmp_path / "recipe.yaml"
    source = small.write(tmp_path / "text.jsonl")
    recipe.write_text(small.recipe(source, steps=30, optimizer={"lr": 3e-2}, schedule={"warmup": 8}).to_yaml())
    search = ["search-decay", "--recipe", recipe, "--quiet", "--set", "from-scratch={name: fst, every: 2}"]
    done = run(*search, "--decays", "0.1,100", "--least", "0", "--most", "99", "--json", tmp_path / "found.json")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "found.json").read_text())
    assert [each["decay"] for each in found["tried"]] == [0.1, 100.0] and found["steps"] == 8
    assert f"from-scratch.decay={found['decay']:g}: its masks flip" in done.output
    none = run(*search, "--decays", "100", "--least", "98", "--most", "99", "--steps", "4")
    assert none.exit_code == 1 and "Try decays below 100." in none.output
    wrong = run(*search, "--decays", "few")
    assert wrong.exit_code == 2 and "--decays takes numbers" in wrong.output
