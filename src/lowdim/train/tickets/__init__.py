"""Tickets: sparse networks caught on the way, by plans of a run or by rounds of pruning."""

from __future__ import annotations

import lowdim.merge  # noqa: F401 - mergers of finished tickets are listed with the plans that make them
from lowdim.core.registry import register

_HERE = "lowdim.train.tickets"
_M = "merger"
register(
    _M,
    "free-tickets",
    f"{_HERE}.freetickets:FreeTickets",
    title="FreeTickets: an ensemble from one sparse run",
    arxiv="2106.14568",
    year=2022,
)
register(
    _M,
    "sup-tickets",
    f"{_HERE}.suptickets:SupTickets",
    title="Sup-tickets: cheap tickets superposed",
    arxiv="2205.15322",
    year=2022,
)
register(
    _M,
    "instant-soup",
    f"{_HERE}.instant:InstantSoup",
    title="Instant Soup: weak masks merged",
    arxiv="2306.10460",
    year=2023,
)
