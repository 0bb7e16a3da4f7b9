"""The tutorial runs: its Python, block after block, as a reader would type it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lowdim.core.recipe import read
from lowdim.train.compare.recipe import TrainingRecipe

PAGE = (Path(__file__).parents[1] / "docs" / "sparse-training.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_tutorial_runs_and_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "tutorial"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for number, block in enumerate(blocks("python")):
            exec(compile(block, f"docs/sparse-training.md, block {number}", "exec"), names)
            if number == 0:
                guessed = names["model"](names["x"]).argmax(1)
                assert float((guessed == names["y"]).double().mean()) > 0.95
    assert names["training"].step == 204


def test_the_page_on_fine_tuning_runs() -> None:
    page = (Path(__file__).parents[1] / "docs" / "finetune.md").read_text(encoding="utf-8")
    found = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    for number, block in enumerate(block for block in found if "lowdim.finetune(" not in block):  # that takes a model
        exec(compile(block, f"docs/finetune.md, block {number}", "exec"), {"__name__": "tutorial"})
    assert found


def test_its_recipes_are_valid() -> None:
    for block in blocks("yaml"):
        recipe = TrainingRecipe(**read(block))
        assert TrainingRecipe.from_yaml(recipe.to_yaml()) == recipe
