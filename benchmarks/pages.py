"""Measured tables: a folder of results for each processor, and the places between two markers of a page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from lowdim.core.machine import processor

RESULTS = Path(__file__).with_name("results")


def results(name: str) -> Path:
    """Return where this processor's results go, its folder made."""
    path = RESULTS / processor() / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def by_processor(name: str) -> dict[str, dict[str, Any]]:
    """Return what every processor has measured under a name, by the folder's: family and model."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"*/{name}.json"))}


def heading(folder: str, about: dict[str, Any]) -> str:
    """Return the line that says what a table was measured on."""
    family, _, model = folder.partition("-")
    which = f"family {family}, model {model}" if model else folder
    return (
        f"{about['cpu']} ({which}), {about['cores']} cores, {about['ram_gb']} GB, kernels for {about['level']} "
        f"({about['build']}), torch {about['torch']}:"
    )


def fill(page: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- benchmark: NAME -->`` and ``<!-- /benchmark: NAME -->``.

    Raises:
        SystemExit: the page has no such place.
    """
    begin, end = f"<!-- benchmark: {name} -->", f"<!-- /benchmark: {name} -->"
    old = page.read_text(encoding="utf-8")
    new, count = re.subn(
        f"{re.escape(begin)}.*?{re.escape(end)}",
        lambda _: f"{begin}\n{text.strip()}\n{end}",
        old,
        flags=re.DOTALL,
    )
    if count != 1:
        raise SystemExit(f"{page} has {count} places marked {begin}")
    page.write_text(new, encoding="utf-8")
