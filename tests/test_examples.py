"""Every example runs as a user would run it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lowdim.prune.recipe import Recipe
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
    kind = Pretraining if file.stem.startswith("pretrain") else Recipe
    recipe = kind.from_yaml(file)
    assert kind.from_yaml(recipe.to_yaml()) == recipe
