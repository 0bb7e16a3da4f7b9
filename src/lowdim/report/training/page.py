"""The page of a run of sparse training: read what it left on disk, and write one HTML file beside it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowdim.core.files import read_json
from lowdim.core.recipe.text import dump
from lowdim.report.draw import words
from lowdim.report.environment import paper, templates
from lowdim.report.files import beside, check_schema, sidecar, whole
from lowdim.report.training.facts import beyond, execution, lines, verdict
from lowdim.report.training.groups import group_table
from lowdim.report.training.pictures import pictures
from lowdim.report.training.rules import rules

FILE, SCHEMA = "training.json", 1

Json = Mapping[str, Any]


def page(out: Path) -> str:
    """Return the page of a directory.

    Raises:
        CheckpointError: its ``training.json`` is damaged, or of another version.
    """
    return render(read(out), sidecar(beside(out, ".run.json"))[0], out.name)


def read(out: Path) -> dict[str, Any]:
    """Return what a run says of itself.

    Raises:
        CheckpointError: there is no ``training.json``, a damaged one, or one of a later version.
    """
    facts = read_json(out / FILE)
    check_schema(facts, out / FILE, SCHEMA)
    return facts


def render(facts: Json, run: Json, out: str = "OUT") -> str:
    """Return the page as text.

    Raises:
        CheckpointError: something that every run records is missing.
    """
    with whole(FILE):
        return templates().get_template("training.html").render(_content(facts, run, out))


def _content(facts: Json, run: Json, out: str) -> dict[str, Any]:
    recipe, sparse = facts["recipe"], facts["members"]["sparse"]
    net = recipe["net"]
    widths = next((value for value in net.values() if isinstance(value, list)), [])
    heads, rows = beyond(facts)
    return {
        "version": facts["lowdim"],
        "net": f"{net['name'].upper() if net['name'] == 'mlp' else net['name']} {'-'.join(map(str, widths))}".strip(),
        "data": facts["data"]["name"],
        "share": words.percent(sparse["sparsity"]),
        "composition": _composition(recipe),
        "verdict": verdict(facts),
        "execution": execution(facts),
        "lines": lines(facts),
        "examples": facts["data"]["test"],
        "groups": group_table(facts),
        "pictures": pictures(facts),
        "rules": rules(facts),
        "heads": heads,
        "rows": rows,
        "skipped": [update for update in sparse["updates"] if "skipped" in update],
        "dense_weights": sparse["dense"],
        "layers": sparse["layers"],
        "recipe": dump(dict(recipe)),
        "method": _method(recipe),
        "command": words.clean(run.get("command") or ""),
        "repeat": shlex.join(["lowdim", "train-sparse", "--recipe", "recipe.yaml", "--out", out]),
        "tables": _tables(facts, run),
    }


def _composition(recipe: Json) -> list[tuple[str, str]]:
    start = recipe["initialisation"]
    spread = recipe["allocation"] if isinstance(recipe["allocation"], str) else "explicit"
    return [
        ("method", recipe["training"]["name"]),
        ("masks from", start["name"]) if start else ("allocation", spread),
        ("pattern", recipe["pattern"]),
        *((kind, recipe[kind]["name"]) for kind in ("objective", "sampler") if kind in recipe),
        ("epochs", str(recipe["epochs"])),
        ("seed", str(recipe["seed"])),
    ]


def _method(recipe: Json) -> dict[str, str] | None:
    name = recipe["training"]["name"]
    found = paper("training", name)
    return {"name": name, **found} if found["title"] else None


def _tables(facts: Json, run: Json) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the small print as titled lists of key and value."""
    stages = [*run.get("before", []), *run.get("stages", [])]
    times = {stage["name"]: words.seconds(stage["seconds"]) for stage in stages}
    if run:
        times["Peak memory of the process"] = words.size(run.get("peak_bytes"))
    found = [
        ("Data", {key: value for key, value in facts["data"].items() if not isinstance(value, dict)}),
        ("Time" if facts["execution"] == "csr" else "Time, dense arithmetic throughout", times),
        ("Machine", {**run.get("machine", {}), "device": run.get("device")} if run else {}),
        ("Versions", {"lowdim": facts["lowdim"], **facts["versions"]}),
    ]
    return [(title, rows) for title, values in found if (rows := _pairs(values))]


def _pairs(values: Json) -> list[tuple[str, str]]:
    return [
        (words.clean(key), f"{value:,}" if isinstance(value, int) else words.clean(value))
        for key, value in values.items()
        if value is not None
    ]
