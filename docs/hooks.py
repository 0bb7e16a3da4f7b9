"""Hooks of mkdocs: the pages and tables that are written from the registry, the recipe and the command line.

Nothing here knows a method by name. ``<!-- generated: X -->`` in a page is replaced by what `GENERATORS`
makes of X.
"""

from __future__ import annotations

import ast
import dataclasses
import html
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Union, get_args, get_origin

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import lowdim
from lowdim.cli import app
from lowdim.core import registry
from lowdim.core.recipe import Section
from lowdim.prune.recipe import schema

ROOT = Path(__file__).resolve().parent.parent
NOTES = ROOT / "docs" / "methods" / "notes"
FLAGS = {"allocation": "--allocation", "pattern": "--pattern", "refine": "--refine"}
PRUNING = ("score", "allocation", "pattern", "repair", "refine")  # what `lowdim prune` can name
PRETRAIN = "lowdim pretrain --recipe recipe.yaml --out OUT"
AUDITS = {"essential-sparsity": "--essential perplexity", "junk-dna": "--junk-dna arc_easy,hellaswag"}
# What a name alone does not say.
EXAMPLES = {
    ("pattern", "nm"): "--pattern 2:4",
    ("pattern", "block"): "--sparsity 0.6 --pattern 1x16",
    ("pattern", "structured"): "--sparsity 0.3 --pattern structured",
    ("allocation", "explicit"): "--sparsity 0.6 --set 'allocation={name: explicit, map: {down_proj: 0.5}}'",
}

# ---------------------------------------------------------------- one page per method


def page_path(method: registry.Entry) -> str:
    """Return the page of a method below docs/."""
    return f"methods/{method.kind}-{method.name}.md"


def method_page(method: registry.Entry) -> str:
    """Return the Markdown of a method's page."""
    cls = method.load()
    names_ = ", ".join(f"`{name}`" for name in (method.name, *method.aliases))
    facts = [
        f"[{method.kind}](../concepts.md#the-parts-of-a-method) {names_}",
        *([paper(method)] if method.year else []),
        f"`src/{cls.__module__.replace('.', '/')}.py`",
    ]
    language, code = usage(method)
    parts = [
        f"# {method.kind.capitalize()} {method.name}",
        method.title + ".",
        " · ".join(facts),
        "## Settings",
        settings_table(method),
        *(["## Run it", f"```{language}\n{code}\n```"] if code else []),
    ]
    note = NOTES / f"{method.kind}-{method.name}.md"
    if note.exists():
        parts += ["## Notes", note.read_text(encoding="utf-8").strip()]
    parts += ["## Reference", f"::: {method.target.replace(':', '.')}"]
    return "\n\n".join(parts) + "\n"


def paper(method: registry.Entry) -> str:
    """Return the link to a method's paper, if it has one."""
    if not method.arxiv:
        return f"[paper]({method.page}), {method.year}" if method.page else ""
    return f"[arXiv {method.arxiv}](https://arxiv.org/abs/{method.arxiv}), {method.year}"


def settings_table(method: registry.Entry) -> str:
    """Return the table of a method's settings, with the key that ``--set`` takes."""
    cls = method.load()
    said = arguments(cls)
    rows = [
        (f"`{method.kind}.{name}`", f"`{plain(value)}`", said.get(name, "see the reference below"))
        for name, value in method.settings().items()
    ]
    return table(("setting", "default", "meaning"), rows) if rows else "None."


def usage(method: registry.Entry) -> tuple[str, str]:
    """Return how a method is used, and in which language; methods that are called have their example below."""
    if method.kind in PRUNING:
        return "bash", command(method)
    if method.kind == "calibration":
        source = "" if method.name == "text" else " --calibration builtin:arc_easy"
        return "bash", f"lowdim prune MODEL OUT --sparsity 0.6{source} --set calibration.format={method.name}"
    if method.kind in ("sampling", "from-scratch", "rank"):
        return "bash", f"{PRETRAIN} --set {method.kind}={method.name}"
    if method.kind == "optimizer":
        command_ = "lowdim finetune MODEL OUT --data rows.jsonl" if method.load().chooses else PRETRAIN
        return "bash", f"{command_} --set optimizer={method.name}"
    if method.kind == "preference":
        return "bash", f"lowdim finetune MODEL OUT --data pairs.jsonl --objective {method.name}"
    if method.kind == "drafter":
        return "bash", f"lowdim distill-draft TARGET --draft target:6 --out OUT --method {method.name}"
    if method.kind == "audit":
        return "bash", f"lowdim inspect MODEL {AUDITS[method.name]}"
    if method.kind == "stage":
        return "bash", f"lowdim compose MODEL OUT --stages {method.name}"
    if method.kind in ("objective", "sampler"):
        needs = {"groups": " --data coloured-fashion-mnist", "ranks": " --ranks RANKS"}
        made = method.load()()
        given = "".join(text for need, text in needs.items() if need in made.requires)
        wanting = (n for n in registry.names("objective") if _usual_sampler(n) == method.name)
        if getattr(made, "pairs", False):
            given += f" --objective {next(wanting)}"
        return "bash", f"lowdim train-sparse --{method.kind} {method.name}{given}"
    if method.kind == "placement":
        cls = method.load().__name__
        call = f"{cls}().apply_(model)  # before the optimizer is made"
        return "python", f"from lowdim.nn.placement import {cls}\n\n{call}"
    if method.kind == "selector":
        return "bash", f"lowdim rank DATA --out DIR --method {method.name}"
    if method.kind == "decay":
        cls = method.load().__name__
        lines = [
            f"from lowdim.train.riders.{method.name} import {cls}",
            "from lowdim.train.riders.spectral import SpectralDecay",
            "",
            f"SpectralDecay(model, optimizer, {cls}())  # then train as before",
        ]
        return "python", "\n".join(lines)
    if method.kind == "training":
        cls = method.load().__name__
        call = f"{cls}(every=100)" if "every" in method.settings() else f"{cls}()"
        lines = [
            f"from lowdim.train import SparseTraining, {cls}",
            "",
            f"training = SparseTraining(model, optimizer, sparsity=0.9, method={call}, total_steps=10_000)",
        ]
        return "python", "\n".join(lines)
    return "", ""


def _usual_sampler(objective: str) -> str:
    return str(registry.find("objective", objective).load().usual_sampler)


def command(method: registry.Entry) -> str:
    """Return a command line that prunes with a method."""
    flag = FLAGS.get(method.kind)
    chosen = f"{flag} {method.name}" if flag else f"--set {method.kind}={method.name}"
    return f"lowdim prune MODEL OUT {EXAMPLES.get((method.kind, method.name), f'--sparsity 0.6 {chosen}')}"


# ---------------------------------------------------------------- tables


def names(kind: str) -> str:
    """Return the linked names of a kind."""
    return ", ".join(
        f"[{name}](methods/{kind}-{name}.md)" for name in registry.names(kind) if not name.startswith("none")
    )


def methods() -> str:
    """Return the tables of all methods, kind by kind."""
    parts = []
    for kind, found in registry.KINDS.items():
        entries = [registry.find(kind, name) for name in registry.names(kind)]
        rows = [(f"[`{m.name}`]({kind}-{m.name}.md)", m.title, paper(m)) for m in entries]
        parts += [f"## {found.title}", table(("name", "what it is, or its paper", "paper"), rows)]
    return "\n\n".join(parts)


def recipe_fields(section: str = "Recipe") -> str:
    """Return the table of a recipe section's fields: type, default, meaning."""
    return fields_of(getattr(schema, section))


def training_fields(section: str) -> str:
    """Return the same of a recipe of training, or of a network."""
    from lowdim.models.small import nets
    from lowdim.train.compare import recipe

    return fields_of(getattr(recipe, section, None) or getattr(nets, section))


def pretraining_fields(section: str) -> str:
    """Return the same of a recipe of pre-training."""
    from lowdim.train.pretrain import recipe

    return fields_of(getattr(recipe, section))


def finetuning_fields(section: str) -> str:
    """Return the same of a recipe of fine-tuning."""
    from lowdim.train.finetune import recipe

    return fields_of(getattr(recipe, section))


def drafting_fields(section: str) -> str:
    """Return the same of a recipe of drafts."""
    from lowdim.train.draft import recipe

    return fields_of(getattr(recipe, section))


def fields_of(model: type[Section]) -> str:
    """Return the table of a model's fields."""
    said = arguments(model)
    rows = []
    for name, field in model.model_fields.items():
        nested = isinstance(field.default, Section)
        value = dataclasses.MISSING if field.is_required() else field.default
        default = "see below" if nested else f"`{plain(value)}`"
        key = field.alias or name
        rows.append((f"`{key}`", spelt(field.annotation), default, said.get(key, "")))
    return table(("field", "type", "default", "meaning"), rows)


def presets() -> str:
    """Return the table of what ``--method`` stands for."""
    from lowdim.prune.recipe import METHODS

    return table(("`--method`", "score", "repair"), [(f"`{k}`", f"`{s}`", f"`{r}`") for k, (s, r) in METHODS.items()])


def commands() -> str:
    """Return the reference of the command line, from the parser itself."""
    root: Any = typer.main.get_command(app)
    return "\n\n".join(part for name, parser in root.commands.items() for part in _command(name, parser))


def _command(name: str, parser: Any) -> Iterator[str]:
    context = parser.context_class(parser, info_name=name)
    yield f"## lowdim {name}"
    yield inspect.cleandoc(parser.help or "")
    yield f"```text\nlowdim {name} {' '.join(parser.collect_usage_pieces(context))}\n```"
    records = [item.get_help_record(context) for item in parser.get_params(context)]
    rows = [(f"<code>{escape(flag.strip())}</code>", escape(text)) for flag, text in filter(None, records)]
    yield table(("option", "meaning"), rows)


def tasks() -> str:
    """Return the table of the zero-shot tasks."""
    from lowdim.evaluate.quality.tasks import TASKS

    rows = [(f"`{task.name}`", task.title, task.split, f"`{task.metric}`") for task in TASKS.values()]
    return table(("name", "data set", "split", "accuracy quoted"), rows)


def exports() -> str:
    """Return the reference of what ``lowdim`` exports, by the module that each name comes from."""
    source = ast.parse((ROOT / "src/lowdim/__init__.pyi").read_text(encoding="utf-8"))
    origin = {
        alias.name: node.module for node in ast.walk(source) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    return "\n\n".join(f"::: {origin[name]}.{name}" for name in lowdim.__all__)


def training_exports() -> str:
    """Return the reference of what ``lowdim.train`` exports beside the methods, which have pages of their own."""
    pages = {method.target.replace(":", ".") for method in registry.methods()}
    found = [getattr(lowdim.train, name) for name in lowdim.train.__all__]
    paths = [f"{thing.__module__}.{thing.__name__}" for thing in found]
    return "\n\n".join(f"::: {path}" for path in paths if path not in pages)


def contributing() -> str:
    """Return CONTRIBUTING.md below its title, its links made those of the site."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return text.split("\n", 1)[1].replace("(docs/", "(")


GENERATORS: dict[str, Callable[..., str]] = {
    "names": names,
    "methods": methods,
    "recipe": recipe_fields,
    "training": training_fields,
    "pretraining": pretraining_fields,
    "finetuning": finetuning_fields,
    "drafting": drafting_fields,
    "presets": presets,
    "commands": commands,
    "tasks": tasks,
    "exports": exports,
    "training-exports": training_exports,
    "contributing": contributing,
}

# ---------------------------------------------------------------- helpers


def arguments(cls: type[Any]) -> dict[str, str]:
    """Return what a Google-style docstring says of each argument or attribute, or its base classes'."""
    found: dict[str, str] = {}
    docs = [inspect.getdoc(each) or "" for each in cls.__mro__ if "__doc__" in vars(each)]
    for heading, doc in ((heading, doc) for doc in docs for heading in ("Args", "Attributes")):
        match = re.search(rf"^{heading}:\n((?:[ ]+.*\n?|\n)+)", doc, re.MULTILINE)
        for item in re.split(r"\n(?= {4}\w)", match.group(1)) if match else []:
            name, _, meaning = item.strip().partition(":")
            found.setdefault(name.split(" ")[0], " ".join(meaning.split()))
    return found


def spelt(annotation: Any) -> str:
    """Return a type as people write it."""
    if get_origin(annotation) is Literal:
        return " \\| ".join(f"`{choice}`" for choice in get_args(annotation))
    if get_origin(annotation) is Union or type(annotation).__name__ == "UnionType":
        return " or ".join("none" if part is NoneType else spelt(part) for part in get_args(annotation))
    if hasattr(annotation, "__metadata__"):
        return spelt(get_args(annotation)[0])
    if get_origin(annotation) is tuple:
        return "list"
    return {
        "str": "text",
        "int": "whole number",
        "float": "number",
        "bool": "true \\| false",
        "Any": "method",
    }.get(
        getattr(annotation, "__name__", ""),
        "section" if issubclass(annotation, Section) else "method",
    )


def escape(text: str) -> str:
    """Return text as a cell of a Markdown table can hold it."""
    return html.escape(text, quote=False).replace("|", "&#124;").replace("*", "&#42;")


def plain(value: Any) -> str:
    """Return a default as YAML would hold it."""
    if value is dataclasses.MISSING:
        return "required"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return "[]" if value == () else str(value)


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# ---------------------------------------------------------------- what mkdocs calls


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the methods' pages to the navigation."""
    assert config.nav is not None
    section = next(item["Methods"] for item in config.nav if isinstance(item, dict) and "Methods" in item)
    for kind, found in registry.KINDS.items():
        pages = [{name: page_path(registry.find(kind, name))} for name in registry.names(kind)]
        section.append({found.title: pages})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add one generated page per method."""
    for method in registry.methods():
        files.append(File.generated(config, page_path(method), content=method_page(method)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace the marks of a page by what is generated."""

    def make(match: re.Match[str]) -> str:
        name, *rest = match.group(1).split()
        return GENERATORS[name](*rest)

    return re.sub(r"<!-- generated: (.+?) -->", make, markdown)
