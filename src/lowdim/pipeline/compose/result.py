"""What a composition found: every measure of the first model and of each order, and how much the order matters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SCHEMA = 1


@dataclass(frozen=True)
class Measure:
    """A column of a composition's table.

    Attributes:
        key: of the measure.
        title: for people.
        ideal: what it should be, given the first model's; ``None`` where nothing is better or worse.
        scale: in what distances are taken: perplexities in nats, by their logarithm.
        first: its value for the first model, where it has one.
    """

    key: str
    title: str
    ideal: Callable[[Mapping[str, Any]], float | None] = lambda _: 1.0
    scale: Callable[[float], float] = float
    first: Callable[[Mapping[str, Any]], float | None] = lambda _: None


def _share(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


MEASURES = (
    Measure("success", "edit success", first=lambda first: _share(first["edits"])),
    Measure("rephrase", "rephrase"),
    Measure("locality", "locality", first=lambda first: 1.0 if first["words"] else None),
    Measure("forgotten", "forget quality", first=lambda first: 0.0 if any(first["forget"]) else None),
    Measure("reworded", "forgotten when reworded", first=lambda first: 0.0 if any(first["reworded"]) else None),
    Measure("retained", "retained", first=lambda first: 1.0 if any(first["retain"]) else None),
    Measure("perplexity", "perplexity", lambda first: first["perplexity"], math.log, lambda first: first["perplexity"]),
)
PLAIN = (
    Measure("zeros", "zeros", lambda _: None, first=lambda first: first["zeros"]),
    Measure("megabytes", "MB on disk", lambda _: None, first=lambda first: first["megabytes"]),
)


def measures(first: Mapping[str, Any]) -> list[Measure]:
    """Return what is measured, the tasks of this composition among it."""

    def of(name: str, value: float) -> Measure:
        return Measure(f"task:{name}", name, lambda _: value, first=lambda _: value)

    return [*MEASURES, *(of(name, value) for name, value in first["tasks"].items()), *PLAIN]


def order_free_error(values: Sequence[float], ideal: float, scale: Callable[[float], float] = float) -> float:
    """Return how far the better order is from the ideal: min over orders of |m - ideal|.

    An order beyond the ideal (a perplexity below the first model's, an accuracy above it) is at a distance of its own:
    the measure was moved, whichever way.

    Args:
        values: m, of each order.
        ideal: what the measure should be.
        scale: in what distances are taken.

    Example:
        >>> order_free_error([0.7, 0.9], 1.0) == 1.0 - 0.9
        True
    """
    return min(abs(scale(value) - scale(ideal)) for value in values)


def order_sensitivity(values: Sequence[float], scale: Callable[[float], float] = float) -> float:
    """Return how much the order matters: max |m - m'| over orders; 0 for stages that commute, and for a single order.

    Example:
        >>> order_sensitivity([0.5, 0.25]), order_sensitivity([0.5])
        (0.25, 0.0)
    """
    scaled = [scale(value) for value in values]
    return max(scaled) - min(scaled)


def table(first: Mapping[str, Any], orders: Mapping[str, Mapping[str, float | None]]) -> list[dict[str, Any]]:
    """Return a row per measure: the first model, each order, and both errors where there are two orders or more.

    Args:
        first: what `lowdim.pipeline.compose.measure.Asked.first` found.
        orders: by the name of the order, what was measured of its result.
    """
    rows = []
    for measure in measures(first):
        own = {name: found.get(measure.key) for name, found in orders.items()}
        known = [value for value in own.values() if value is not None]
        before, ideal = measure.first(first), measure.ideal(first)
        if not known and before is None:
            continue
        finite = len(known) == len(own) and all(map(math.isfinite, known))
        judged = finite and ideal is not None
        rows.append(
            {
                "measure": measure.key,
                "title": measure.title,
                "first": before,
                "ideal": ideal,
                "orders": own,
                "unit": "nats" if measure.scale is math.log else "",
                "error": order_free_error(known, ideal, measure.scale) if judged and ideal is not None else None,
                "sensitivity": order_sensitivity(known, measure.scale) if judged and len(known) > 1 else None,
            }
        )
    return rows


def sentence(rows: Sequence[Mapping[str, Any]], orders: Sequence[str]) -> str:
    """Say which measure the order moves most, that it moves none, or that nothing of both orders could be compared.

    Example:
        >>> row = {"measure": "locality", "title": "locality", "sensitivity": 0.25, "orders": {"a": 0.5, "b": 0.75}}
        >>> sentence([row], ["a", "b"])
        'The order matters most for locality: 0.5 with a, 0.75 with b.'
    """
    if len(orders) < 2:
        return f"One order: {orders[0]}." if orders else "No stage: the model as it was."
    counted = {measure.key for measure in PLAIN}
    asked = [row for row in rows if row["measure"] not in counted]
    judged = [row for row in asked if row["sensitivity"] is not None]
    unknown = [row["title"] for row in asked if row["sensitivity"] is None]
    rest = f" Not measured: {', '.join(unknown)}." if unknown else ""
    if not judged:
        return "Whether the order matters was not measured: no measure has a finite value for each of the models."
    moved = [row for row in judged if row["sensitivity"]]
    if moved:
        most = max(moved, key=lambda row: float(row["sensitivity"]))
        said = ", ".join(f"{value:.4g} with {name}" for name, value in most["orders"].items())
        return f"The order matters most for {most['title']}: {said}.{rest}"
    if unknown:
        return f"The order moves nothing of what was measured.{rest}"
    return f"The order does not matter: {' and '.join(orders)} measure the same."
