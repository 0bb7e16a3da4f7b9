"""Results as plain tables and plain values; how a terminal draws them is the command line's business."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """A table: a title, names of columns, and rows whose first cell is a name and whose others are numbers.

    Example:
        >>> print(Table("Sparsity", ("block", "share"), (("0", "0.50"), ("10", "0.25"))).text())
        Sparsity
        block  share
        0       0.50
        10      0.25
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        """Return the table as lines of text, numbers flush right."""
        lines = [self.heads, *self.rows]
        widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
        drawn = (
            "  ".join(
                cell.rjust(width) if place else cell.ljust(width)
                for place, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )
        return "\n".join([self.title, *drawn])


def number(value: float | None, digits: int = 4) -> str:
    """Write a number, and a dash for one that there is not.

    Example:
        >>> number(0.5), number(None), number(1234.5678, 1)
        ('0.5000', '-', '1234.6')
    """
    return "-" if value is None else f"{value:.{digits}f}"


def jsonable(value: Any) -> Any:
    """Return nested results with None for every number that JSON lacks.

    Example:
        >>> jsonable({"a": [1.0, float("nan")], "b": (float("inf"),)})
        {'a': [1.0, None], 'b': [None]}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(inner) for inner in value]
    return value
