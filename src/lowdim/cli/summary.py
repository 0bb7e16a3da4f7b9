"""What is printed after a run: one table, dense against sparse, and where the report is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lowdim.cli.screen import show, table
from lowdim.report.pruning.rivals import heads, missing, rivals
from lowdim.report.pruning.summary import hard_verdict, headline, notices, verdict

PLACES = 2


def finish(out: Path) -> None:
    """Print the table of a finished run, write its report and print where it is."""
    from lowdim.report.build import beside, build

    manifest, run = read(out / "lowdim.json"), read(beside(out, ".run.json"))
    rows = headline(manifest, run)
    table(("", "dense", "sparse", "change"), [(r.label, r.dense, r.sparse, r.change) for r in rows], 1)
    show(verdict(manifest, run))
    if hard := hard_verdict(manifest):
        show(hard)
    beside_it = rivals(run)
    table(("in this runtime", *(head.lower() for head in heads(run))), [r.cells for r in beside_it], 1)
    for rival in beside_it[1:]:
        show(rival.sentence)
    if why := missing(run):
        show(why)
    for notice in notices(manifest):
        more = "" if len(notice.places) <= PLACES else f" and {len(notice.places) - PLACES} more"
        show(f"{notice.kind}: {notice.what} ({', '.join(notice.places[:PLACES])}{more})")
    show(f"Model:  {out}\nReport: {build(out)}")


def read(path: Path) -> dict[str, Any]:
    """Return a JSON file, or nothing if it is not there."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
