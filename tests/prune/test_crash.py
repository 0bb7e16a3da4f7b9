"""Killed at any moment and resumed, a run ends in the bytes of an undisturbed one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.prune import tiny
from tests.turns import turns

from lowdim.prune.api import prune

ROOT = Path(__file__).parents[2]
RECIPES: dict[str, dict[str, Any]] = {
    "dense wanda-owl": {"method": "wanda", "allocation": {"name": "owl", "m": 2}},
    "packed sparsegpt": {"method": "sparsegpt", "storage": "packed", "sequential": "true"},
    "rounded refit": {"method": "refit", "quantize": "int4"},
}


def crash(
    source: Path,
    home: Path,
    settings: dict[str, Any],
    points: tuple[int, int],
    old: Path | None,
    job: str = "prune",
) -> Any:
    plan = {"job": job, "source": str(source), "home": str(home), "settings": settings, "points": points}
    (home / "plan.json").write_text(json.dumps(plan | {"old": None if old is None else str(old)}))
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-m", "tests.prune.crash", str(home / "plan.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((home / "found.json").read_text())


def check(made: Any, replaced: bool) -> None:
    assert made["steps"] > 40
    assert len(made["found"]) >= 3
    for found in made["found"]:
        assert found["died"] == -9, found
        assert found["result"] in ("old", "new"), found
        assert found["safe"], found
        assert found["resumed"] == 0, found
        assert found["differs"] == [], found
        assert found["beside"] == [], found
        assert found["log"], found
    assert made["again"]["kills"] > 3
    assert made["again"]["same"]
    assert {found["result"] for found in made["found"][:3]} == {"old"}
    assert replaced or made["found"][-1]["result"] in ("old", "new")


@pytest.mark.parametrize("name", turns(list(RECIPES), of=3))
def test_killed_at_some_points(name: str, saved: Callable[[str], Path], tmp_path: Path) -> None:
    first = list(RECIPES).index(name)
    check(crash(saved("llama"), tmp_path, RECIPES[name], (4 * first, 23), None), replaced=False)


def test_killed_while_replacing_an_older_result(saved: Callable[[str], Path], tmp_path: Path) -> None:
    old = tmp_path / "old"
    prune(str(saved("llama")), tiny.recipe(method="magnitude", sparsity=0.5), out=old)
    made = crash(saved("llama"), tmp_path, RECIPES["dense wanda-owl"], (3, 23), old)
    check(made, replaced=True)


@pytest.mark.nightly
@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("kind", ["llama", "mixtral", "gpt2"])
@pytest.mark.parametrize("name", RECIPES)
def test_killed_at_every_point(
    name: str, kind: str, replaced: bool, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    old = tmp_path / "old" if replaced else None
    if old is not None:
        prune(str(saved(kind)), tiny.recipe(method="magnitude", sparsity=0.5), out=old)
    check(crash(saved(kind), tmp_path, RECIPES[name], (0, 1), old), replaced)
