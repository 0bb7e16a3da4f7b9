"""What holds for the package as a whole: its exports, its cost to import, its files, its dependencies."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import lowdim
from lowdim.core import registry

PACKAGE = Path(lowdim.__file__).parent
ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}

EXPORTS = {
    "Composition",
    "Drafting",
    "Finetuning",
    "LowdimError",
    "Masks",
    "Pretraining",
    "Recipe",
    "Recovery",
    "SparseLinear",
    "accelerate",
    "compose",
    "diagnose",
    "distill_draft",
    "finetune",
    "load",
    "perplexity",
    "plan",
    "pretrain",
    "prune",
    "rank",
    "recover",
    "runtime_info",
    "train",
}

NOT_IMPORTED = {"sentencepiece", "protobuf"}
"""Dependencies that transformers imports on lowdim's behalf."""

IMPORT_NAMES = {"yaml": "pyyaml", "huggingface_hub": "huggingface-hub", "PIL": "pillow", "fontTools": "fonttools"}
OPTIONAL = {
    "datasets": "data",
    "lm_eval": "eval",
    "lightning": "lightning",
    "peft": "lora",
    "sklearn": "train",
    "trl": "trl",
} | dict.fromkeys(("fastapi", "starlette", "uvicorn", "prometheus_client"), "serve")


def name(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


# ---------------------------------------------------------------- exports


def test_exports_are_exactly_the_documented_ones() -> None:
    assert set(lowdim.__all__) == EXPORTS
    assert len(lowdim.__all__) == len(EXPORTS)


@pytest.mark.parametrize("export", sorted(EXPORTS))
def test_export_resolves_and_has_a_docstring(export: str) -> None:
    assert getattr(lowdim, export).__doc__


def test_type_checkers_see_what_is_exported() -> None:
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
    imported = {alias.asname for node in ast.walk(stub) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imported == EXPORTS == set(lowdim.__all__)
    assert set(dir(lowdim)) >= EXPORTS


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="prun_"):
        lowdim.prun_  # noqa: B018


def test_version_is_the_one_of_the_distribution() -> None:
    assert lowdim.__version__ == metadata.version("lowdim") == PROJECT["version"]


# ---------------------------------------------------------------- cost of an import


def test_import_does_not_import_torch() -> None:
    assert run("import lowdim, sys; print('torch' in sys.modules)") == "False"


def test_settings_of_every_method_load_without_torch() -> None:
    code = """
import sys
from lowdim.core import registry
count = len([method.settings() for method in registry.methods()])
print(count > 10, 'torch' in sys.modules, 'transformers' in sys.modules)
"""
    assert run(code) == "True False False"


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_module_has_a_docstring_and_fits_in_400_lines(path: Path) -> None:
    assert ast.get_docstring(TREES[path])
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_typed_marker_is_shipped() -> None:
    assert (PACKAGE / "py.typed").exists()


def test_every_import_resolves_to_a_module_that_is_shipped() -> None:
    for path in MODULES:
        if path.name != "__main__.py":
            module = ".".join(("lowdim", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
            if module != "lowdim.train.adapters.trl" or importlib.util.find_spec("trl"):  # of an extra that CI has not
                importlib.import_module(module)


def test_imports_run_one_way() -> None:
    pytest.importorskip("importlinter")
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    config = str(ROOT / "pyproject.toml")
    command = [sys.executable, "-c", code, "--config", config, "--no-cache"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b[1-9]\d* kept, 0 broken", done.stdout)


# ---------------------------------------------------------------- dependencies


def declared(requirements: list[str]) -> dict[str, str]:
    found = (re.fullmatch(r"([\w.-]+)>=([\w.]+)(,<[\w.]+)?", line) for line in requirements)
    return {match[1]: match[2] for match in found if match}


def imported() -> set[str]:
    roots: set[str] = set()
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                roots |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                roots.add(node.module.split(".")[0])
    third_party = roots - set(sys.stdlib_module_names) - {"lowdim"}
    return {IMPORT_NAMES.get(root, root) for root in third_party}


def test_every_requirement_is_a_lower_bound() -> None:
    assert len(declared(PROJECT["dependencies"])) == len(PROJECT["dependencies"])


def test_what_is_imported_is_declared_and_what_is_declared_is_used() -> None:
    used = imported() - set(OPTIONAL)
    used.discard("pydantic_core")  # pydantic pins its own core
    assert used == set(declared(PROJECT["dependencies"])) - NOT_IMPORTED


def test_dependencies_are_explained_with_their_bounds() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text()
    rows = {}
    for packages, bounds in re.findall(r"^\| ([\w, -]+?) \| ([\d., a-z]+?) \|", page, re.MULTILINE):
        rows.update(zip(packages.split(", "), re.findall(r"\d[\d.]*", bounds), strict=False))
    assert rows == declared(PROJECT["dependencies"])


def test_pinned_versions_satisfy_the_bounds() -> None:
    pins = dict(re.findall(r"^([\w.-]+)==([\w.]+)$", (ROOT / "requirements" / "constraints.txt").read_text(), re.M))
    pins |= dict(re.findall(r"^(torch)==([\d.]+)$", (ROOT / "requirements" / "torch.txt").read_text(), re.M))
    known = {package.lower().replace("_", "-"): version for package, version in pins.items()}
    for package, bound in declared(PROJECT["dependencies"]).items():
        assert numbers(known[package]) >= numbers(bound), package


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


# ---------------------------------------------------------------- registry


@pytest.mark.parametrize("method", registry.methods(), ids=lambda method: f"{method.kind}-{method.name}")
def test_method_names_its_paper_or_none(method: registry.Entry) -> None:
    assert method.title
    assert re.fullmatch(r"\d{4}\.\d{4,5}|", method.arxiv)
    assert bool(method.arxiv or method.page) == bool(method.year)


PRUNING = ("score", "allocation", "pattern", "repair", "refine", "calibration", "audit")
PAPERS = [method for method in registry.methods() if method.year and method.kind in PRUNING]


@pytest.mark.parametrize("method", PAPERS, ids=lambda method: f"{method.kind}-{method.name}")
def test_a_paper_goes_by_its_title(method: registry.Entry) -> None:
    assert method.title[0].isupper()
    assert len(re.findall(r"\w[\w:'-]*", method.title)) >= 4
    docs = inspect.getdoc(method.load()) or ""
    quoted = re.findall(r"[\"“](.+?)[\"”]", docs.replace("\n", " ").replace("    ", ""))
    assert any(title in method.title for title in quoted if len(title.split()) >= 4), (method.title, quoted)


def test_one_paper_has_one_title() -> None:
    titles: dict[str, set[str]] = {}
    for method in PAPERS:
        titles.setdefault(method.arxiv or method.page, set()).add(method.title)
    assert {paper: found for paper, found in titles.items() if len(found) > 1} == {}
