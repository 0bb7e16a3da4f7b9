"""What a stress found: every task at every sparsity against the dense model, and what may be said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from lowdim.evaluate.quality.hard import Verdict
from lowdim.evaluate.quality.interval import wilson
from lowdim.pipeline.answers import answers
from lowdim.pipeline.stress.settings import Settings
from lowdim.prune.measure import Measured

SCHEMA = 1
_NOTHING = "No weight is pruned: what differs is the measurement's own."


@dataclass(frozen=True)
class Point:
    """A model of the grid.

    Attributes:
        sparsity: as asked for.
        form: "pruned" or "recovered".
        zeros: the share of zeros over its layers, read from what was written.
        measured: what it answered.
    """

    sparsity: float
    form: str
    zeros: float
    measured: Measured

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "sparsity": self.sparsity,
            "form": self.form,
            "zeros": self.zeros,
            "measured": self.measured.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Point:
        """Rebuild from `to_dict`."""
        return cls(data["sparsity"], data["form"], data["zeros"], Measured.from_dict(data["measured"]))


def render(settings: Settings, dense: Measured, points: Sequence[Point]) -> dict[str, Any]:
    """Return the contents of ``stress.json``."""
    rows = []
    for point in points:
        found = answers(dense.tasks, point.measured.tasks)
        verdict = Verdict(found, settings.tolerance, settings.own)
        told = {name: each.to_dict(verdict.allowed(name)) for name, each in found.items()}
        said = verdict.to_dict() if point.sparsity else {"lossless": None, "sentence": _NOTHING}
        rows.append(
            {
                "sparsity": point.sparsity,
                "form": point.form,
                "zeros": point.zeros,
                "perplexity": _perplexity(point.measured),
                **said,
                "tasks": told,
            }
        )
    protocol = dense.perplexity.protocol if dense.perplexity is not None else {}
    return {
        "schema": SCHEMA,
        "lowdim": version("lowdim"),
        "model": settings.model,
        "sentence": sentence(rows),
        "dense": {"perplexity": _perplexity(dense), "tasks": _alone(dense)},
        "rows": rows,
        "protocol": protocol,
    }


def sentence(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say up to which sparsity nothing is lost, every sparsity below it included, for each form.

    What was allowed to be lost there, and which tasks prove nothing, is in the sentences of the rows, which follow.

    Example:
        >>> row = {"form": "pruned", "lossless": True, "sentence": "Within 2 points."}
        >>> print(sentence([{**row, "sparsity": 0.05}, {**row, "sparsity": 0.5, "lossless": False, "sentence": "No."}]))
        Pruned: lossless on the hard tasks up to 5% zeros. At 5%: Within 2 points. At 50%: No.
    """
    said = []
    for form in dict.fromkeys(row["form"] for row in rows):
        own = [row for row in rows if row["form"] == form and row["sparsity"] > 0]
        first = next((place for place, row in enumerate(own) if not row["lossless"]), len(own))
        held = f" lossless on the hard tasks up to {own[first - 1]['sparsity']:.0%} zeros." if first else ""
        ends = own[max(0, first - 1) : first + 1]
        rest = "".join(f" At {row['sparsity']:.0%}: {row['sentence']}" for row in ends)
        said.append(f"{form.capitalize()}:{held}{rest}")
    return " ".join(said)


def _perplexity(found: Measured) -> float | None:
    return None if found.perplexity is None else found.perplexity.value


def _alone(found: Measured) -> dict[str, Any]:
    return {
        name: {
            "accuracy": task.value,
            "interval": list(wilson(int(task.outcomes.sum()), task.questions)),
            "chance": task.chance,
            "metric": task.metric,
            "questions": task.questions,
        }
        for name, task in found.tasks.items()
    }
