"""The sheet of a ranking as text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lowdim
from lowdim.core.errors import CheckpointError
from lowdim.core.files import read_json
from lowdim.data.select.ranks import JSON, Ranks
from lowdim.report.draw import words
from lowdim.report.environment import paper, templates
from lowdim.report.files import beside, sidecar
from lowdim.report.pruning.page import pairs
from lowdim.report.ranking.pictures import pictures
from lowdim.train.selection.api import SHOWN

Json = Mapping[str, Any]
_CLAIM = re.compile(r"^(?:A|No) sign of a bias \((.*?) of a permutation test\): ")  # which the verdict says already


def page(out: Path) -> str:
    """Return the sheet of a directory.

    Raises:
        LowdimError: what it shows is missing or damaged.
    """
    return render(*read(out), sidecar(beside(out, ".run.json"))[0], out.name)


def read(out: Path) -> tuple[Ranks, Json, Json]:
    """Return what a ranking left on disk: the ranks, all facts about them, and the samples to be shown.

    Raises:
        DataError: there are no ranks, or they do not belong together.
        CheckpointError: what is to be shown is missing: the ranks were saved by themselves.
    """
    ranks = Ranks.load(out)
    if not (out / SHOWN).is_file():
        raise CheckpointError(f"{out} holds ranks and no {SHOWN}, which 'lowdim rank' writes beside them for the sheet")
    return ranks, read_json(out / JSON), read_json(out / SHOWN)


def render(ranks: Ranks, told: Json, shown: Json, run: Json, out: str) -> str:
    """Return the sheet as text.

    Args:
        ranks: of the samples.
        told: what ``ranks.json`` holds.
        shown: what ``shown.json`` holds.
        run: what ``OUT.run.json`` holds, or nothing.
        out: name of the directory.
    """
    facts = told["facts"]
    sign = facts["sign"]
    return (
        templates()
        .get_template("ranking.html")
        .render(
            version=lowdim.__version__,
            name=words.clean(told["name"]),
            samples=told["samples"],
            classes=len(told["classes"]),
            verdict=verdict(told),
            sentence=_CLAIM.sub(r"Permutation test, \1: ", sign["sentence"]),
            skipped=[words.clean(name) for name in told["skipped"]],
            pictures=pictures(ranks),
            kind=shown["kind"],
            pixels=shown["side"],
            shown=shown["classes"],
            last=int(ranks.rank.max()),
            never=facts.get("never_ranked", 0),
            ends=[words.clean(end) for end in shown["ends"]],
            value=next(iter(ranks.values), ""),
            counts=counts(ranks),
            paper=paper("selector", told["method"]),
            out=out,
            tables=tables(told, run),
        )
    )


def verdict(told: Json) -> str:
    """Return what the ranking comes to in one or two sentences.

    Example:
        >>> facts = {"ranked": [60, 0, 20], "never_ranked": 20, "epochs": 3, "sign": {"found": False}}
        >>> verdict({"samples": 100, "facts": facts})
        'No sign of a bias. 60% of the samples were learnt in the first epoch, 20% never in 3 epochs.'
    """
    facts = told["facts"]
    total = told["samples"]
    start = "A sign of a bias." if facts["sign"]["found"] else "No sign of a bias."
    if facts["sign"].get("p", 0) is None:
        start = "Not tested for a bias."
    if "ranked" not in facts:
        return start
    first, never = facts["ranked"][0] / total, facts["never_ranked"] / total
    left = "all others later" if not never else f"{_percent(never)} never in {words.plural(facts['epochs'], 'epoch')}"
    return f"{start} {_percent(first)} of the samples were learnt in the first epoch, {left}."


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= 0.095 or share == 0 else f"{100 * share:.1f}%"


def counts(ranks: Ranks) -> list[tuple[str, int, str, str, int]]:
    """Return a row of each class: name, samples, shares of the first and the last rank, and what that rank is."""
    rows = []
    for number, name in enumerate(ranks.classes):
        mine = ranks.rank[ranks.label == number]
        if not len(mine):
            continue
        last = int(mine.max())
        shares = (float((mine == 1).double().mean()), float((mine == last).double().mean()))
        rows.append((words.clean(name), len(mine), _percent(shares[0]), _percent(shares[1]), last))
    return rows


def tables(told: Json, run: Json) -> list[tuple[str, Any]]:
    """Return the tables at the foot: settings, the test, and what the run took."""
    facts = told["facts"]
    sign = facts["sign"]
    tested = {key: sign[key] for key in ("p", "trend", "tail", "misjudged")}
    course = {key: facts[key] for key in ("epochs", "steps", "ended", "never_ranked") if key in facts}
    found = [
        ("Selector", pairs({"name": told["method"]} | told["settings"])),
        ("Network", pairs(told["net"])),
        *([("Course", pairs(course))] if course else []),
        ("Test for a bias", pairs(tested)),
    ]
    if run:
        found.append(("This run", pairs({"seconds": run.get("seconds"), "memory": run.get("peak_bytes")})))
    return found
