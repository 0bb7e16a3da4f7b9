"""Sparse training: two lines in any loop.

Each name below is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowdim.core.allocation.erk import erk as erk
    from lowdim.merge.ensemble import ensemble as ensemble
    from lowdim.models.channels.graph import find_channels as find_channels
    from lowdim.models.channels.slice import slice_channels as slice_channels
    from lowdim.models.walk.selection import select as select
    from lowdim.nn.csr.linear import CSRLinear as CSRLinear
    from lowdim.nn.csr.swap import sparse_ as sparse_
    from lowdim.train.dynamic.chase import Chase as Chase
    from lowdim.train.dynamic.ctre import CTRE as CTRE
    from lowdim.train.dynamic.gradual import GradualMagnitude as GradualMagnitude
    from lowdim.train.dynamic.granet import GraNet as GraNet
    from lowdim.train.dynamic.itop import ITOP as ITOP
    from lowdim.train.dynamic.neurrev import NeurRev as NeurRev
    from lowdim.train.dynamic.rigl import RigL as RigL
    from lowdim.train.dynamic.selfish import SelfishRNN as SelfishRNN
    from lowdim.train.dynamic.set import SET as SET
    from lowdim.train.dynamic.static import Static as Static
    from lowdim.train.dynamic.strnn import STRNN as STRNN
    from lowdim.train.estimators.mlp import SparseMLPClassifier as SparseMLPClassifier
    from lowdim.train.estimators.mlp import SparseMLPRegressor as SparseMLPRegressor
    from lowdim.train.estimators.neurofs import NeuroFS as NeuroFS
    from lowdim.train.initial.grasp import GraSP as GraSP
    from lowdim.train.initial.imp import IMP as IMP
    from lowdim.train.initial.imp import LotteryTicket as LotteryTicket
    from lowdim.train.initial.lottery import LotteryTickets as LotteryTickets
    from lowdim.train.initial.magnitude import Magnitude as Magnitude
    from lowdim.train.initial.npb import NPB as NPB
    from lowdim.train.initial.random import RandomMasks as RandomMasks
    from lowdim.train.initial.random import ratios_of as ratios_of
    from lowdim.train.initial.sanity import reinitialise_ as reinitialise_
    from lowdim.train.initial.sanity import shuffled as shuffled
    from lowdim.train.initial.snip import SNIP as SNIP
    from lowdim.train.initial.synflow import SynFlow as SynFlow
    from lowdim.train.optimizers.sntasgd import SNTASGD as SNTASGD
    from lowdim.train.sparse.method import Method as Method
    from lowdim.train.sparse.training import SparseTraining as SparseTraining
    from lowdim.train.tickets import FreeTickets as FreeTickets
    from lowdim.train.tickets import InstantSoup as InstantSoup
    from lowdim.train.tickets import LotteryPools as LotteryPools
    from lowdim.train.tickets import Soup as Soup
    from lowdim.train.tickets import SupTickets as SupTickets
    from lowdim.train.tickets import Ticket as Ticket
    from lowdim.train.tickets import TicketCollector as TicketCollector
    from lowdim.train.tickets import refresh_norm as refresh_norm

# The modules that the names above come from; a test keeps the two alike.
_EXPORTS = {
    "CSRLinear": "lowdim.nn.csr.linear",
    "CTRE": "lowdim.train.dynamic.ctre",
    "Chase": "lowdim.train.dynamic.chase",
    "FreeTickets": "lowdim.train.tickets",
    "GraNet": "lowdim.train.dynamic.granet",
    "GraSP": "lowdim.train.initial.grasp",
    "GradualMagnitude": "lowdim.train.dynamic.gradual",
    "IMP": "lowdim.train.initial.imp",
    "ITOP": "lowdim.train.dynamic.itop",
    "InstantSoup": "lowdim.train.tickets",
    "LotteryPools": "lowdim.train.tickets",
    "LotteryTicket": "lowdim.train.initial.imp",
    "LotteryTickets": "lowdim.train.initial.lottery",
    "Magnitude": "lowdim.train.initial.magnitude",
    "Method": "lowdim.train.sparse.method",
    "NPB": "lowdim.train.initial.npb",
    "NeurRev": "lowdim.train.dynamic.neurrev",
    "NeuroFS": "lowdim.train.estimators.neurofs",
    "RandomMasks": "lowdim.train.initial.random",
    "RigL": "lowdim.train.dynamic.rigl",
    "SET": "lowdim.train.dynamic.set",
    "SNIP": "lowdim.train.initial.snip",
    "SNTASGD": "lowdim.train.optimizers.sntasgd",
    "STRNN": "lowdim.train.dynamic.strnn",
    "SelfishRNN": "lowdim.train.dynamic.selfish",
    "Soup": "lowdim.train.tickets",
    "SparseMLPClassifier": "lowdim.train.estimators.mlp",
    "SparseMLPRegressor": "lowdim.train.estimators.mlp",
    "SparseTraining": "lowdim.train.sparse.training",
    "Static": "lowdim.train.dynamic.static",
    "SupTickets": "lowdim.train.tickets",
    "SynFlow": "lowdim.train.initial.synflow",
    "Ticket": "lowdim.train.tickets",
    "TicketCollector": "lowdim.train.tickets",
    "ensemble": "lowdim.train.tickets",
    "erk": "lowdim.core.allocation.erk",
    "find_channels": "lowdim.models.channels.graph",
    "ratios_of": "lowdim.train.initial.random",
    "refresh_norm": "lowdim.train.tickets",
    "reinitialise_": "lowdim.train.initial.sanity",
    "select": "lowdim.models.walk.selection",
    "shuffled": "lowdim.train.initial.sanity",
    "slice_channels": "lowdim.models.channels.slice",
    "sparse_": "lowdim.nn.csr.swap",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'lowdim.train' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
