"""``lowdim methods``: what can be combined, and the papers it comes from."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from lowdim.cli.guard import guarded
from lowdim.cli.options import Debug
from lowdim.cli.screen import show, table
from lowdim.core import registry
from lowdim.core.errors import RecipeError, suggest
from lowdim.core.registry import Entry


@guarded()
def methods(
    kind: Annotated[
        str | None, typer.Option("--kind", metavar="|".join(registry.KINDS), help="Only this kind.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    debug: Debug = False,
) -> None:
    """List every method, its settings with their defaults, and its paper."""
    if kind is not None and kind not in registry.KINDS:
        raise RecipeError(f"unknown --kind {kind!r}. {suggest(kind, registry.KINDS)}")
    rows = [_row(method) for method in registry.methods() if kind in (None, method.kind)]
    if as_json:
        show(json.dumps(rows, indent=2))
    else:
        table(("kind", "name", "settings", "paper", "year", "arXiv"), map(_cells, rows))


def _row(method: Entry) -> dict[str, Any]:
    return {
        "kind": method.kind,
        "name": method.name,
        "title": method.title,
        "year": method.year or None,
        "arxiv": method.arxiv or None,
        "page": method.page or None,
        "settings": {key: _shown(value) for key, value in method.settings().items()},
    }


def _shown(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else "required"


def _cells(row: dict[str, Any]) -> tuple[object, ...]:
    settings = "\n".join(f"{key}={value}" for key, value in row["settings"].items())
    return row["kind"], row["name"], settings, row["title"], row["year"], row["arxiv"]
