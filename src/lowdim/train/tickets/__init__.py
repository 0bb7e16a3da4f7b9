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
    title="Deep Ensembling with No Overhead for either Training or Testing: The All-Round Blessings of Dynamic "
    "Sparsity",
    arxiv="2106.14568",
    year=2022,
)
register(
    _M,
    "sup-tickets",
    f"{_HERE}.suptickets:SupTickets",
    title="Superposing Many Tickets into One: A Performance Booster for Sparse Neural Network Training",
    arxiv="2205.15322",
    year=2022,
)
register(
    _M,
    "instant-soup",
    f"{_HERE}.instant:InstantSoup",
    title="Instant Soup: Cheap Pruning Ensembles in A Single Pass Can Draw Lottery Tickets from Large Models",
    arxiv="2306.10460",
    year=2023,
)
register(
    _M,
    "sparse-cocktail",
    f"{_HERE}.cocktail:SparseCocktail",
    title="Sparse Cocktail: Every Sparse Pattern Every Sparse Ratio All At Once",
    page="https://github.com/VITA-Group/SparseCocktail",
    year=2024,
)
