"""Imports stand at the top of a file, except those that would load what most users of it never need."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import lowdim

PACKAGE = Path(lowdim.__file__).parent
FILES = {
    ".".join(("lowdim", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
Import = ast.Import | ast.ImportFrom


def walk(node: ast.AST, inside: bool = False) -> Iterator[tuple[Import, bool]]:
    """Yield the imports of a file, and whether each stands in a function; those for type checkers are left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        if isinstance(child, Import):
            yield child, inside
        yield from walk(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))


@cache
def imports(module: str) -> list[tuple[Import, bool]]:
    return list(walk(ast.parse(FILES[module].read_text(encoding="utf-8"))))


def targets(node: Import) -> set[str]:
    """Return what an import loads: modules of ours with the packages around them, others by their first name."""
    if isinstance(node, ast.Import):
        names = {alias.name for alias in node.names}
    else:
        names = {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    ours = {name for name in names if name in FILES}
    parts = [name.split(".") for name in ours]
    packages = {".".join(part[:end]) for part in parts for end in range(1, len(part))}
    return ours | packages | {name.split(".")[0] for name in names if not name.startswith("lowdim")}


@cache
def loads(module: str) -> frozenset[str]:
    """Return the packages of others that importing a module loads."""
    seen: set[str] = set()
    waiting = {module}
    while waiting:
        name = waiting.pop()
        seen.add(name)
        if name in FILES:
            waiting |= {each for node, inside in imports(name) if not inside for each in targets(node)} - seen
    return frozenset(seen - FILES.keys() - set(sys.stdlib_module_names))


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_stand_at_the_top(module: str) -> None:
    for node, inside in imports(module):
        if not inside or module.startswith("lowdim.cli"):  # a command loads what it needs when it runs
            continue
        names = targets(node)
        assert "torch" not in names or not isinstance(node, ast.Import) or node.names[0].name != "torch", module
        ours = [name for name in names if name in FILES]
        new = frozenset().union(*(loads(name) for name in ours)) - loads(module)
        assert new or not ours, f"{module} line {node.lineno}: {ours} may be imported at the top"
