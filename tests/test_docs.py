"""The documentation says what is so: commands parse, recipes are valid, every method has a page."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

import lowdim
from lowdim.cli import app
from lowdim.cli.sweep import described
from lowdim.core import registry
from lowdim.pipeline.compose.recipe import Composition
from lowdim.pipeline.recover.chain import SECTION, split
from lowdim.pipeline.sweep.recipe import SweepRecipe
from lowdim.prune.recipe import Recipe, read
from lowdim.train.compare.recipe import TrainingRecipe
from lowdim.train.draft.recipe import Drafting
from lowdim.train.finetune.recipe import Finetuning
from lowdim.train.pretrain.recipe import Pretraining

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
TRAINING_FLAGS = {
    "data": "data.name",
    "net": "net.name",
    "method": "training.name",
    "sparsity": "sparsity",
    "objective": "objective.name",
    "sampler": "sampler.name",
}
PROGRAM: Any = typer.main.get_command(app)
FLAGS = {
    "calibration": "calibration.source",
    "samples": "calibration.samples",
    "context": "calibration.context",
}


def blocks(language: str) -> Iterator[Any]:
    for page in PAGES:
        for number, (indent, found, body) in enumerate(FENCE.findall(page.read_text(encoding="utf-8"))):
            if found == language:
                text = re.sub(f"^{indent}", "", body, flags=re.MULTILINE)
                yield pytest.param(text, id=f"{page.relative_to(ROOT)}-{number}")


def load_hooks() -> ModuleType:
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse(words: list[str]) -> None:
    """Check a line of ``lowdim ...`` against the real parser, and its recipe against the real schema."""
    if words in (["--version"], []):
        return
    parser = PROGRAM.commands[words[0]]
    values = parser.make_context(words[0], words[1:]).params
    if words[0] == "prune" and not values.get("recipe"):
        check_recipe(values)
    if words[0] == "train-sparse":
        flags = {key: values[name] for name, key in TRAINING_FLAGS.items()}
        flags["ranks.path"] = values["ranks"] and str(values["ranks"])
        TrainingRecipe.assemble(None, flags, values.get("assignments") or [])


def check_recipe(values: dict[str, Any]) -> None:
    flags = {FLAGS.get(flag, flag): value for flag, value in values.items()}
    known = {key: value for key, value in flags.items() if key.split(".")[0] in Recipe.keys()}  # noqa: SIM118
    Recipe.assemble(None, known, values.get("assignments") or [])


@pytest.mark.parametrize("block", [*blocks("bash")])
def test_commands_exist(block: str) -> None:
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        program, *rest = words
        if program == "make":
            assert set(rest) <= TARGETS
        elif program == "lowdim":
            parse(rest)
        elif program == "torchrun":
            parse(rest[rest.index("lowdim") + 1 :])
        else:
            assert program in ("pip", ".venv/bin/python")


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_recipes_of_the_examples_are_valid(path: Path) -> None:
    assert Pretraining.from_yaml(path).steps if path.stem.startswith("pretrain") else split(path, {}, [])[0].target > 0


@pytest.mark.parametrize("block", [*blocks("yaml")])
def test_recipes_are_valid(block: str, tmp_path: Path) -> None:
    values = read(block)
    if SECTION in values:
        file = tmp_path / "recipe.yaml"
        file.write_text(block)
        assert split(file, {}, [])[1] is not None
        return
    if "command" in values:
        sweep = SweepRecipe(**values)
        assert sweep.runs(described(PROGRAM, sweep.command))
        return
    if "method" in values and "model" not in values and "data" in values:
        assert Finetuning(model="builtin:smollm2-135m", **values)
        return
    kinds = {"stages": Composition, "model": Pretraining, "draft": Drafting, "training": TrainingRecipe}
    kind: Any = next((kind for key, kind in kinds.items() if key in values), Recipe)
    recipe = kind(**values)
    assert kind.from_yaml(recipe.to_yaml()) == recipe


@pytest.mark.parametrize("block", [*blocks("python")])
def test_snippets_use_what_exists(block: str) -> None:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "lowdim":
            assert node.attr in lowdim.__all__
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "lowdim.Recipe":
            assert eval(ast.unparse(node), {"lowdim": lowdim})  # noqa: S307 (our own pages)


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_readme_has_the_place_of_the_measured_table() -> None:
    assert re.search(r"<!-- demo-table -->.+<!-- /demo-table -->", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("method", registry.methods(), ids=lambda method: f"{method.kind}-{method.name}")
def test_method_page_is_complete(method: registry.Entry) -> None:
    hooks = load_hooks()
    page = hooks.method_page(method)
    for setting in method.settings():
        assert re.search(rf"^\| `{method.kind}\.{setting}` \| `.+?` \| .+ \|$", page, re.MULTILINE), setting
        doc = inspect.getdoc(method.load()) or ""
        assert setting in hooks.arguments(method.load()) or f"``{setting}``" in doc, f"{setting} is not explained"
    language, code = hooks.usage(method)
    if language == "bash":
        parse(shlex.split(code)[1:])
    elif language == "python":
        names = ast.parse(code).body[0]
        assert isinstance(names, ast.ImportFrom)
        assert {alias.name for alias in names.names} <= set(dir(importlib.import_module(str(names.module))))


def test_notes_belong_to_methods() -> None:
    known = {f"{method.kind}-{method.name}.md" for method in registry.methods()}
    assert {path.name for path in (ROOT / "docs" / "methods" / "notes").iterdir()} <= known


def test_every_recipe_field_is_explained() -> None:
    hooks = load_hooks()
    for section in ("Recipe", "Calibration", "Evaluation", "Targets"):
        for row in hooks.recipe_fields(section).splitlines()[2:]:
            assert row.count(" | ") == 3, row
            assert not row.endswith("|  |"), row
    for section in ("Pretraining", "Data", "Schedule", "Evaluation"):
        for row in hooks.pretraining_fields(section).splitlines()[2:]:
            assert row.count(" | ") == 3 and not row.endswith("|  |"), row
    for section in ("Finetuning", "Examples", "Adapter"):
        for row in hooks.finetuning_fields(section).splitlines()[2:]:
            assert row.count(" | ") == 3 and not row.endswith("|  |"), row
    for section in ("Drafting", "Text", "Tune", "Reference", "Acceptance"):
        for row in hooks.drafting_fields(section).splitlines()[2:]:
            assert row.count(" | ") == 3 and not row.endswith("|  |"), row
    for section in ("TrainingRecipe", "Data", "Optimizer", "MLP", "Conv", "Text"):
        for row in hooks.training_fields(section).splitlines()[2:]:
            assert not row.endswith("|  |"), row


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        (
            "One line.\n\nArgs:\n    a: first,\n        two lines.\n    b (int): second: with a colon.\n",
            {"a": "first, two lines.", "b": "second: with a colon."},
        ),
        ("One line.", {}),
        ("Attributes:\n    x: it.\n\nRaises:\n    ValueError: no.\n", {"x": "it."}),
    ],
)
def test_arguments_are_read_from_docstrings(docstring: str, expected: dict[str, str]) -> None:
    cls = type("Sample", (), {"__doc__": docstring})
    assert load_hooks().arguments(cls) == expected
