"""What a front found: the table, which forms are on it, and the one to deploy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from lowdim.core.errors import LowdimError
from lowdim.evaluate.quality.hard import Verdict
from lowdim.pipeline.answers import answers
from lowdim.pipeline.front.measure import Row
from lowdim.pipeline.front.pareto import best_within, on_front
from lowdim.pipeline.front.settings import REFERENCE
from lowdim.prune.measure import Measured

SCHEMA = 1
COSTS: dict[str, Callable[[Row], float | None]] = {
    "bytes_per_token": lambda row: row.bytes_per_token,
    "file_bytes": lambda row: row.file_bytes,
    "seconds_per_token": lambda row: None if row.tokens_per_s is None else 1 / row.tokens_per_s,
}
"""What perplexity is set against; less is better."""


@dataclass(frozen=True)
class Result:
    """A finished front.

    Attributes:
        model: as the user named it.
        rows: of all forms.
        budget: bytes read per token that the recommended form may take.
        protocol: of the perplexities.
        machine: where it was measured.
        minutes: of training of each trained form; ``None`` if none was trained.
    """

    model: str
    rows: tuple[Row, ...]
    budget: float
    protocol: Mapping[str, Any]
    machine: Mapping[str, Any]
    minutes: float | None = None

    def fronts(self) -> dict[str, list[str]]:
        """Return for each cost the forms that no other beats in cost and perplexity, cheapest first."""
        found = {}
        for name, cost_of in COSTS.items():
            points = [(c, r.perplexity, r.form) for r in self.rows if (c := cost_of(r)) and r.perplexity is not None]
            kept = on_front([point[:2] for point in points])
            found[name] = [form for *_, form in sorted(p for p, keep in zip(points, kept, strict=True) if keep)]
        return found

    def recommended(self) -> Row | None:
        """Return the form of the least perplexity within the budget; ``None`` if none fits."""
        rows = _measured(self.rows)
        found = best_within([(row.bytes_per_token or 0, row.perplexity or 0.0) for row in rows], self.budget)
        return None if found is None else rows[found]

    def sentence(self) -> str:
        """Say in one sentence which form to deploy."""
        rows, best, budget = _measured(self.rows), self.recommended(), f"{_mb(self.budget)} read per token"
        if best is None:
            least = min(rows, key=lambda row: row.bytes_per_token or 0)
            return f"No form fits {budget}: the smallest is {least.form} with {_mb(least.bytes_per_token)}."
        other = "sparse" if best.sort == "dense" else "dense"
        rivals = [row for row in rows if row.sort == other and (row.bytes_per_token or 0) <= self.budget]
        rival = min(rivals, key=lambda row: row.perplexity or 0.0, default=None)
        tried = any(row.sort == other for row in rows)
        compared = f"no {other} form fits" if tried else f"no {other} form was measured"
        if rival is not None:
            compared = f"the best {other} form that fits is {rival.form} with {rival.perplexity:.2f}"
        return (
            f"Within {budget} deploy {best.form}: perplexity {best.perplexity:.2f}, {_mb(best.bytes_per_token)} a "
            f"token, {best.tokens_per_s:.1f} tokens/s, {_mb(best.file_bytes)} on disk; {compared}."
        )

    def verdicts(self) -> dict[str, Any]:
        """Return what may be said of every form on the hard tasks, against the first dense one; empty without them.

        See `lowdim.evaluate.quality.hard.Verdict`; the tolerance is its own.
        """
        asked = [row for row in self.rows if row.outcomes]
        dense = next((row for row in asked if row.sort == "dense"), None)
        if dense is None:
            return {}
        scores = {row.form: Measured.from_dict({"tasks": row.outcomes}).tasks for row in asked}
        found = {
            row.form: Verdict(answers(scores[dense.form], scores[row.form])).to_dict()
            for row in asked
            if row is not dense
        }
        return {"against": dense.form, "forms": found} if found else {}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        best = self.recommended()
        return {
            "schema": SCHEMA,
            "lowdim": version("lowdim"),
            "model": self.model,
            "minutes": self.minutes,
            "budget_bytes": self.budget,
            "recommended": None if best is None else best.form,
            "sentence": self.sentence(),
            "fronts": self.fronts(),
            "rows": [{key: v for key, v in row.to_dict().items() if key != "outcomes"} for row in self.rows],
            "verdicts": self.verdicts(),
            "protocol": dict(self.protocol),
            "machine": dict(self.machine),
        }


def budget_of(rows: Sequence[Row], megabytes: float | None) -> float:
    """Return the budget in bytes: the one given, else what the dense int8 form reads."""
    if megabytes is not None:
        return megabytes * 1e6
    found = next((row.bytes_per_token for row in rows if row.form == REFERENCE), None)
    if found is None:
        raise LowdimError(f"{REFERENCE} was not measured, so there is no budget; give --budget-mb.")
    return float(found)


def _measured(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.perplexity is not None and row.bytes_per_token]


def _mb(count: float | None) -> str:
    return f"{(count or 0) / 1e6:.3g} MB"
