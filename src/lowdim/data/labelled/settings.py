"""How the user's own samples are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lowdim.core.settings import Settings, count

SIZE = 64


@dataclass(frozen=True)
class Pictures(Settings):
    """Pictures in files.

    Attributes:
        size: pixels along a side of what is trained on; pictures are cut to a square about their middle and scaled.
        unreadable: "refuse" names pictures that cannot be read, "skip" warns of them and goes on without.
    """

    size: int = count(SIZE)
    unreadable: Literal["refuse", "skip"] = "refuse"


@dataclass(frozen=True)
class Table(Settings):
    """Texts in a table.

    Attributes:
        text: column of the texts.
        label: column of the classes.
    """

    text: str = "text"
    label: str = "label"
