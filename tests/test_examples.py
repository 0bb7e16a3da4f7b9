"""Every example runs as a user would run it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lowdim.pipeline.recover.chain import split
from lowdim.train.pretrain.recipe import Pretraining

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_scripts(script: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "LOWDIM_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "%" in done.stdout or "bytes" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes(file: Path) -> None:
    recipes = [Pretraining.from_yaml(file)] if file.stem.startswith("pretrain") else split(file, {}, [])
    for recipe in filter(None, recipes):
        assert type(recipe).from_yaml(recipe.to_yaml()) == recipe
