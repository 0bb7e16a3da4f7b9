"""Sparse training: two lines in any loop.

Each name below is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

_D = "lowdim.train.dynamic"
_S = "lowdim.train.static"
_EXPORTS: dict[str, str] = {
    "CSRLinear": "lowdim.train.executor.linear",
    "CTRE": f"{_D}.ctre",
    "Chase": f"{_D}.chase",
    "GraNet": f"{_D}.granet",
    "GradualMagnitude": f"{_D}.gradual",
    "ITOP": f"{_D}.itop",
    "Method": f"{_D}.base",
    "NeurRev": f"{_D}.neurrev",
    "RigL": f"{_D}.rigl",
    "SET": f"{_D}.set",
    "STRNN": "lowdim.train.recurrent.strnn",
    "SNTASGD": "lowdim.train.recurrent.sntasgd",
    "SelfishRNN": "lowdim.train.recurrent.selfish",
    "NeuroFS": "lowdim.train.features.neurofs",
    "SparseMLPClassifier": "lowdim.train.mlp",
    "SparseMLPRegressor": "lowdim.train.mlp",
    "SparseTraining": "lowdim.train.training",
    "Static": f"{_D}.static",
    **dict.fromkeys(
        [
            "FreeTickets",
            "InstantSoup",
            "LotteryPools",
            "Soup",
            "SupTickets",
            "Ticket",
            "TicketCollector",
            "ensemble",
            "refresh_norm",
        ],
        "lowdim.train.tickets",
    ),
    **{
        name: f"{_S}.{module}"
        for module, names in {
            "random": ("RandomMasks", "random_masks", "ratios_of"),
            "magnitude": ("Magnitude", "magnitude"),
            "snip": ("SNIP", "snip"),
            "grasp": ("GraSP", "grasp"),
            "synflow": ("SynFlow", "synflow"),
            "npb": ("NPB", "npb"),
            "sanity": ("reinitialise_", "shuffled"),
            "lottery": ("LotteryTickets",),
            "imp": ("IMP", "LotteryTicket"),
        }.items()
        for name in names
    },
    "erk": "lowdim.core.allocation.shapes",
    "find_channels": "lowdim.train.channels.graph",
    "select": "lowdim.train.selection",
    "slice_channels": "lowdim.train.channels.slice",
    "sparse_": "lowdim.train.executor.swap",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'lowdim.train' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
