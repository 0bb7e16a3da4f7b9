"""Sparse training: two lines in any loop.

Each name below is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowdim.core.allocation.shapes import erk as erk
    from lowdim.train.channels.graph import find_channels as find_channels
    from lowdim.train.channels.slice import slice_channels as slice_channels
    from lowdim.train.dynamic.base import Method as Method
    from lowdim.train.dynamic.chase import Chase as Chase
    from lowdim.train.dynamic.ctre import CTRE as CTRE
    from lowdim.train.dynamic.gradual import GradualMagnitude as GradualMagnitude
    from lowdim.train.dynamic.granet import GraNet as GraNet
    from lowdim.train.dynamic.itop import ITOP as ITOP
    from lowdim.train.dynamic.neurrev import NeurRev as NeurRev
    from lowdim.train.dynamic.rigl import RigL as RigL
    from lowdim.train.dynamic.set import SET as SET
    from lowdim.train.dynamic.static import Static as Static
    from lowdim.train.executor.linear import CSRLinear as CSRLinear
    from lowdim.train.executor.swap import sparse_ as sparse_
    from lowdim.train.features.neurofs import NeuroFS as NeuroFS
    from lowdim.train.mlp import SparseMLPClassifier as SparseMLPClassifier
    from lowdim.train.mlp import SparseMLPRegressor as SparseMLPRegressor
    from lowdim.train.recurrent.selfish import SelfishRNN as SelfishRNN
    from lowdim.train.recurrent.sntasgd import SNTASGD as SNTASGD
    from lowdim.train.recurrent.strnn import STRNN as STRNN
    from lowdim.train.selection import select as select
    from lowdim.train.static.grasp import GraSP as GraSP
    from lowdim.train.static.grasp import grasp as grasp
    from lowdim.train.static.imp import IMP as IMP
    from lowdim.train.static.imp import LotteryTicket as LotteryTicket
    from lowdim.train.static.lottery import LotteryTickets as LotteryTickets
    from lowdim.train.static.magnitude import Magnitude as Magnitude
    from lowdim.train.static.magnitude import magnitude as magnitude
    from lowdim.train.static.npb import NPB as NPB
    from lowdim.train.static.npb import npb as npb
    from lowdim.train.static.random import RandomMasks as RandomMasks
    from lowdim.train.static.random import random_masks as random_masks
    from lowdim.train.static.random import ratios_of as ratios_of
    from lowdim.train.static.sanity import reinitialise_ as reinitialise_
    from lowdim.train.static.sanity import shuffled as shuffled
    from lowdim.train.static.snip import SNIP as SNIP
    from lowdim.train.static.snip import snip as snip
    from lowdim.train.static.synflow import SynFlow as SynFlow
    from lowdim.train.static.synflow import synflow as synflow
    from lowdim.train.tickets import FreeTickets as FreeTickets
    from lowdim.train.tickets import InstantSoup as InstantSoup
    from lowdim.train.tickets import LotteryPools as LotteryPools
    from lowdim.train.tickets import Soup as Soup
    from lowdim.train.tickets import SupTickets as SupTickets
    from lowdim.train.tickets import Ticket as Ticket
    from lowdim.train.tickets import TicketCollector as TicketCollector
    from lowdim.train.tickets import ensemble as ensemble
    from lowdim.train.tickets import refresh_norm as refresh_norm
    from lowdim.train.training import SparseTraining as SparseTraining

# The modules that the names above come from; a test keeps the two alike.
_EXPORTS = {
    "CSRLinear": "lowdim.train.executor.linear",
    "CTRE": "lowdim.train.dynamic.ctre",
    "Chase": "lowdim.train.dynamic.chase",
    "FreeTickets": "lowdim.train.tickets",
    "GraNet": "lowdim.train.dynamic.granet",
    "GraSP": "lowdim.train.static.grasp",
    "GradualMagnitude": "lowdim.train.dynamic.gradual",
    "IMP": "lowdim.train.static.imp",
    "ITOP": "lowdim.train.dynamic.itop",
    "InstantSoup": "lowdim.train.tickets",
    "LotteryPools": "lowdim.train.tickets",
    "LotteryTicket": "lowdim.train.static.imp",
    "LotteryTickets": "lowdim.train.static.lottery",
    "Magnitude": "lowdim.train.static.magnitude",
    "Method": "lowdim.train.dynamic.base",
    "NPB": "lowdim.train.static.npb",
    "NeurRev": "lowdim.train.dynamic.neurrev",
    "NeuroFS": "lowdim.train.features.neurofs",
    "RandomMasks": "lowdim.train.static.random",
    "RigL": "lowdim.train.dynamic.rigl",
    "SET": "lowdim.train.dynamic.set",
    "SNIP": "lowdim.train.static.snip",
    "SNTASGD": "lowdim.train.recurrent.sntasgd",
    "STRNN": "lowdim.train.recurrent.strnn",
    "SelfishRNN": "lowdim.train.recurrent.selfish",
    "Soup": "lowdim.train.tickets",
    "SparseMLPClassifier": "lowdim.train.mlp",
    "SparseMLPRegressor": "lowdim.train.mlp",
    "SparseTraining": "lowdim.train.training",
    "Static": "lowdim.train.dynamic.static",
    "SupTickets": "lowdim.train.tickets",
    "SynFlow": "lowdim.train.static.synflow",
    "Ticket": "lowdim.train.tickets",
    "TicketCollector": "lowdim.train.tickets",
    "ensemble": "lowdim.train.tickets",
    "erk": "lowdim.core.allocation.shapes",
    "find_channels": "lowdim.train.channels.graph",
    "grasp": "lowdim.train.static.grasp",
    "magnitude": "lowdim.train.static.magnitude",
    "npb": "lowdim.train.static.npb",
    "random_masks": "lowdim.train.static.random",
    "ratios_of": "lowdim.train.static.random",
    "refresh_norm": "lowdim.train.tickets",
    "reinitialise_": "lowdim.train.static.sanity",
    "select": "lowdim.train.selection",
    "shuffled": "lowdim.train.static.sanity",
    "slice_channels": "lowdim.train.channels.slice",
    "snip": "lowdim.train.static.snip",
    "sparse_": "lowdim.train.executor.swap",
    "synflow": "lowdim.train.static.synflow",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'lowdim.train' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
