"""What ``lowdim.train`` exports: loaded when used, seen by type checkers, documented."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import lowdim.train


def test_type_checkers_see_what_is_exported() -> None:
    tree = ast.parse(Path(lowdim.train.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    seen = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    assert sorted(seen) == lowdim.train.__all__
    assert set(seen) <= set(dir(lowdim.train))
    for name, home in seen.items():
        assert getattr(importlib.import_module(str(home)), name) is getattr(lowdim.train, name)


@pytest.mark.parametrize("name", lowdim.train.__all__)
def test_every_name_resolves_and_has_a_docstring(name: str) -> None:
    found = getattr(lowdim.train, name)
    assert found.__name__ == name
    assert inspect.getdoc(found)


def test_importing_the_package_costs_no_torch() -> None:
    code = "import sys, lowdim.train; assert 'torch' not in sys.modules; lowdim.train.RigL(every=5)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="RigLL"):
        _ = lowdim.train.RigLL
