"""The page as text: facts gathered from a run, put into the template with every name escaped."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from lowdim.report.draw import words
from lowdim.report.draw.grid import Pruned, layers_of
from lowdim.report.environment import paper, templates
from lowdim.report.pruning import figures, speed
from lowdim.report.pruning.rivals import heads, missing, rivals
from lowdim.report.pruning.summary import Notice, hard_verdict, headline, notices, rounded_alone, section, verdict

_MOST_LAYERS = 1200  # rows of the table of layers: the page stays below 1.5 MB
_ROLES = ("score", "allocation", "pattern", "repair", "refine")

Json = Mapping[str, Any]


def render(
    manifest: Json, run: Json, *, bench: Json | None = None, problems: Sequence[str] = (), out: str = "OUT"
) -> str:
    """Return the page as text.

    Args:
        manifest: the contents of ``lowdim.json``.
        run: the contents of ``OUT.run.json``, or an empty mapping.
        bench: the contents of ``OUT.bench.json``; what the run itself measured of speed stands in for it.
        problems: why ``run`` or ``bench`` is empty although the file is there; shown on the page.
        out: the name of the run's directory, for the command that repeats the run.
    """
    found = notices(manifest)
    found = [Notice("fallback", words.clean(problem)) for problem in problems] + found
    return templates().get_template("report.html").render(_facts(manifest, run, bench or {}, found, out))


def _facts(manifest: Json, run: Json, bench: Json, found: list[Notice], out: str) -> dict[str, Any]:
    recipe = section(manifest, "recipe")
    layers = layers_of(manifest)
    model = section(manifest, "model")
    share = section(manifest, "sparsity").get("prunable")
    return {
        "version": manifest.get("lowdim") or "",
        "model": _model_name(model),
        "share": "" if share is None or rounded_alone(manifest) else words.percent(share),
        "composition": [(role, name) for role in _ROLES if (name := _method_name(recipe, role)) not in ("", "none")],
        "verdict": verdict(manifest, run),
        "hard": hard_verdict(manifest),
        "rows": headline(manifest, run),
        "rivals": rivals(run),
        "no_rivals": missing(run),
        "rival_heads": heads(run),
        "fallbacks": [notice for notice in found if notice.kind == "fallback"],
        "skipped": [notice for notice in found if notice.kind == "skipped"],
        "pictures": figures.pictures(manifest, run),
        "speed": _speed(speed.measured(run, bench), manifest),
        "recipe": _yaml(recipe),
        "command": words.clean(run.get("command") or ""),
        "repeat": shlex.join(
            ["lowdim", "prune", words.clean(model.get("source") or "MODEL"), out, "--recipe", "recipe.yaml"]
        ),
        "methods": _methods(recipe),
        "tables": _tables(manifest, run),
        "layers": layers[:_MOST_LAYERS],
        "layer_count": len(layers),
        "layer_columns": _columns(layers),
        "files": _hashes(manifest),
    }


def _speed(found: Json, manifest: Json) -> dict[str, Any]:
    return {
        "rows": speed.rows(found, manifest),
        "conditions": speed.conditions(found),
        "notes": speed.notes(found),
        "pictures": speed.pictures(found, manifest),
    }


def _model_name(model: Json) -> str:
    source = words.clean(model.get("source") or "a model")
    return source.rstrip("/").rpartition("/")[2] or source if source.startswith(("/", "./", "../", "~")) else source


def _method_name(recipe: Json, role: str) -> str:
    value = recipe.get(role)
    name = value.get("name") if isinstance(value, Mapping) else value
    return words.clean(name) if name else ""


def _methods(recipe: Json) -> list[dict[str, str]]:
    """Return role, name, title and paper of every method in a recipe; the unregistered by name alone."""
    named = [(role, _method_name(recipe, role)) for role in _ROLES]
    return [{"role": role, "name": name, **paper(role, name)} for role, name in named if name not in ("", "none")]


def _yaml(recipe: Json) -> str:
    from lowdim.core.recipe.text import dump

    return dump(dict(recipe)) if recipe else ""


def _tables(manifest: Json, run: Json) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the small print as titled lists of key and value."""
    model = {key: value for key, value in section(manifest, "model").items() if key != "files"}
    extra = {"storage": manifest.get("storage"), "seed": manifest.get("seed")}
    shares = {f"zeros, {key}": words.percent(value) for key, value in section(manifest, "sparsity").items()}
    found = [
        ("Model", model | extra | shares),
        ("Calibration data", section(manifest, "data", "calibration")),
        ("Recovery", _recovery(section(manifest, "recovery"))),
        ("Fine-tuning", section(manifest, "finetuning")),
        ("Perplexity protocol", section(manifest, "evaluation", "perplexity", "protocol")),
        ("Machine", section(run, "machine")),
        ("Library versions", section(manifest, "versions")),
    ]
    return [(title, rows) for title, values in found if (rows := pairs(values))]


def _recovery(found: Json) -> Json:
    """Return what the small print says of a recovery: all but what each block and each choice of masks did."""
    recipe = {key: value for key, value in section(found, "recipe").items() if key not in ("evaluation", "calibration")}
    kept = ("teacher", "data", "stages", "distill", "note", "pruned", "without_slorb")
    return {**{key: found[key] for key in kept if found.get(key)}, **recipe} if found else {}


def pairs(values: Json) -> list[tuple[str, str]]:
    """Write keys and values; those of a mapping inside carry its key before their own."""
    rows = []
    for key, value in values.items():
        name = words.clean(key).replace("_", " ")
        if isinstance(value, Mapping):
            rows += [(f"{name}, {inner}", text) for inner, text in pairs(value)]
        elif value is not None:
            rows.append((name, _plain(value)))
    return rows


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return words.number(value)
    legible = isinstance(value, str) and (value.isprintable() or not value.isascii())
    return words.clean(value if legible else json.dumps(value, ensure_ascii=False))


def _columns(layers: list[Pruned]) -> dict[str, bool]:
    """Tell which columns of the table of layers have anything in them."""
    return {
        name: any(getattr(layer, name) not in (None, "") for layer in layers)
        for name in ("target", "value", "error", "mask")
    }


def _hashes(manifest: Json) -> list[tuple[str, dict[str, str]]]:
    found = [("read", section(manifest, "model", "files")), ("written", section(manifest, "hashes", "files"))]
    return [(verb, {words.clean(k): words.clean(v) for k, v in files.items()}) for verb, files in found if files]
