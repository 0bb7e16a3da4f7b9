from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import lowdim
from lowdim.prune import api


def test_the_package_prunes_when_called(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def fake(*arguments: object, **options: object) -> str:
        seen.update(arguments=arguments, options=options)
        return "result"

    monkeypatch.setattr(api, "prune", fake)
    assert lowdim.prune("model", "recipe", out="out") == "result"
    assert seen == {"arguments": ("model", "recipe"), "options": {"out": "out"}}


def test_it_is_still_the_package_whatever_is_imported_first() -> None:
    assert lowdim.prune is importlib.import_module("lowdim.prune") is sys.modules["lowdim.prune"]
    program = "import lowdim.prune.recipe as r, lowdim; assert callable(lowdim.prune); assert lowdim.prune.recipe is r"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_wrong_argument_is_named() -> None:
    with pytest.raises(TypeError, match="outt"):
        lowdim.prune("model", lowdim.Recipe(sparsity=0.5), outt="x")
