"""Tickets: snapshots of sparse networks, and ways to make one model, or an ensemble, of many."""

from __future__ import annotations

from lowdim.core.registry import register
from lowdim.merge.combine import blend, iou
from lowdim.merge.ensemble import Ensemble, ensemble, predict
from lowdim.merge.pools import LotteryPools
from lowdim.merge.quality import Quality, quality
from lowdim.merge.soup import Soup
from lowdim.models.norms import refresh_norm
from lowdim.models.ticket import Ticket
from lowdim.train.tickets.collect import TicketCollector
from lowdim.train.tickets.freetickets import FreeTickets, independent_tickets
from lowdim.train.tickets.instant import InstantSoup
from lowdim.train.tickets.plan import Phase, Plan
from lowdim.train.tickets.suptickets import SupTickets

__all__ = [
    "Ensemble",
    "FreeTickets",
    "InstantSoup",
    "LotteryPools",
    "Phase",
    "Plan",
    "Quality",
    "Soup",
    "SupTickets",
    "Ticket",
    "TicketCollector",
    "blend",
    "ensemble",
    "independent_tickets",
    "iou",
    "predict",
    "quality",
    "refresh_norm",
]

_HERE = "lowdim.train.tickets"
register(
    "merger",
    "free-tickets",
    f"{_HERE}.freetickets:FreeTickets",
    title="FreeTickets: an ensemble from one sparse run",
    arxiv="2106.14568",
    year=2022,
)
register(
    "merger",
    "sup-tickets",
    f"{_HERE}.suptickets:SupTickets",
    title="Sup-tickets: cheap tickets superposed",
    arxiv="2205.15322",
    year=2022,
)
register(
    "merger",
    "lottery-pools",
    "lowdim.merge.pools:LotteryPools",
    title="Lottery Pools: tickets interpolated",
    arxiv="2208.10842",
    year=2023,
)
register(
    "merger",
    "instant-soup",
    f"{_HERE}.instant:InstantSoup",
    title="Instant Soup: weak masks merged",
    arxiv="2306.10460",
    year=2023,
)
register(
    "merger", "soup", "lowdim.merge.soup:Soup", title="Model soups, sparse", arxiv="2203.05482", year=2022
)
