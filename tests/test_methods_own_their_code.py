"""Nothing outside a method's family asks which method it has: no isinstance, no type, no probing, no name compared."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import lowdim
from lowdim.core import registry

SOURCE = Path(lowdim.__file__).parent
WORDS = {"score", "repair", "allocation", "pattern", "refine", "method"}
NAMING = {"name_of", "word"}


def _folder(module: str) -> Path:
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


NAMES = {method.name for method in registry.methods()}
HOMES: dict[tuple[str, str], set[Path]] = {}
for _method in registry.methods():
    _module, _, _class = _method.target.partition(":")
    HOMES[_module, _class] = {_folder(_module), *map(_folder, registry.KINDS[_method.kind].modules)}


def _imported(tree: ast.Module) -> dict[str, tuple[str, str]]:
    """Return which registered class each imported name of a file is."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                for module, name in HOMES:
                    if alias.name == name and f"{module}.".startswith(f"{node.module}."):
                        found[alias.asname or alias.name] = (module, name)
    return found


def _last(node: ast.AST) -> str:
    """Return the last identifier of ``a.b.c``, the key of ``a["c"]``, or the function of a call."""
    if isinstance(node, ast.Call):
        return _last(node.func)
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return str(node.slice.value)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _constants(node: ast.AST) -> set[object]:
    return {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}


def _offences(tree: ast.Module, path: Path) -> Iterator[tuple[int, str]]:
    foreign = {name for name, key in _imported(tree).items() if path.parent not in HOMES[key]}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            asked = {part.id for arg in node.args[1:] for part in ast.walk(arg) if isinstance(part, ast.Name)}
            if node.func.id in ("isinstance", "issubclass") and asked & foreign:
                yield node.lineno, f"{node.func.id} of {', '.join(sorted(asked & foreign))}"
            literal = len(node.args) != 2 or isinstance(node.args[1], ast.Constant)
            if node.func.id in ("hasattr", "getattr") and literal and _last(node.args[0]) in WORDS:
                yield node.lineno, f"{node.func.id} of a {_last(node.args[0])}"
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(_last(side) == "type" for side in sides) and any(_last(side) in foreign for side in sides):
                yield node.lineno, "type compared"
            named = any(_last(side) in NAMING and isinstance(side, ast.Call) for side in sides)
            word = any(_last(side) in WORDS for side in sides)
            if (named or word) and any(_constants(side) & NAMES for side in sides):
                yield node.lineno, "name of a method compared"


def offences(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    place = path.relative_to(SOURCE)
    return [f"{place}:{line}: {what}" for line, what in _offences(tree, path)]


FILES = sorted(SOURCE.rglob("*.py"))


def test_no_file_asks_which_method_it_has() -> None:
    found = {str(path.relative_to(SOURCE)): offences(path) for path in FILES}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("from lowdim.core.score import Wanda\nisinstance(x, Wanda)", "isinstance of Wanda"),
        ("from lowdim.core.score.wanda import Wanda as W\nisinstance(x, (int, W))", "isinstance of W"),
        ("from lowdim.core.score import OBS, Wanda\nisinstance(x, OBS | Wanda)", "isinstance of OBS, Wanda"),
        ("from lowdim.core.score import Wanda\ntype(x) is Wanda", "type compared"),
        ("getattr(recipe.repair, 'block', None)", "getattr of a repair"),
        ("hasattr(score, 'variant')", "hasattr of a score"),
        ("recipe.word('allocation') == 'owl'", "name of a method compared"),
        ("recipe.word('allocation') in ('uniform', 'owl')", "name of a method compared"),
        ("recipe['pattern'] == 'structured'", "name of a method compared"),
    ],
)
def test_an_offence_is_found(code: str, what: str) -> None:
    assert [found for _, found in _offences(ast.parse(code), SOURCE / "prune" / "engine.py")] == [what]


@pytest.mark.parametrize(
    "code",
    [
        "from lowdim.core.score import Score\nisinstance(x, Score)",
        "from lowdim.models.walk.stream import Block\nisinstance(x, Block)",
        "getattr(recipe, kind)",
        "recipe.word('allocation')",
    ],
)
def test_what_is_no_offence(code: str) -> None:
    assert not list(_offences(ast.parse(code), SOURCE / "prune" / "engine.py"))
