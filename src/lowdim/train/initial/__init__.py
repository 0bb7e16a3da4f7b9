"""Masks chosen before training, and lottery tickets found by training."""

from lowdim.core.registry import register

_HERE = "lowdim.train.initial"
_I = "initialisation"
register(
    _I,
    "random",
    f"{_HERE}.random:RandomMasks",
    title="The Unreasonable Effectiveness of Random Pruning: Return of the Most Naive Baseline for Sparse Training",
    arxiv="2202.02643",
    year=2022,
)
register(
    _I,
    "magnitude",
    f"{_HERE}.magnitude:Magnitude",
    title="Learning both Weights and Connections for Efficient Neural Networks",
    arxiv="1506.02626",
    year=2015,
)
register(
    _I,
    "snip",
    f"{_HERE}.snip:SNIP",
    title="SNIP: Single-shot Network Pruning based on Connection Sensitivity",
    arxiv="1810.02340",
    year=2019,
)
register(
    _I,
    "grasp",
    f"{_HERE}.grasp:GraSP",
    title="Picking Winning Tickets Before Training by Preserving Gradient Flow",
    arxiv="2002.07376",
    year=2020,
)
register(
    _I,
    "synflow",
    f"{_HERE}.synflow:SynFlow",
    title="Pruning neural networks without any data by iteratively conserving synaptic flow",
    arxiv="2006.05467",
    year=2020,
)
register(
    _I,
    "npb",
    f"{_HERE}.npb:NPB",
    title="Towards Data-Agnostic Pruning At Initialization: What Makes a Good Sparse Mask?",
    year=2023,
    page="https://openreview.net/forum?id=xdOoCWCYaY",
)
register(
    _I,
    "ramanujan",
    f"{_HERE}.ramanujan:RamanujanMasks",
    title="Revisiting Pruning at Initialization Through the Lens of Ramanujan Graph",
    year=2023,
    page="https://openreview.net/forum?id=uVcDssQff_",
)
register(
    _I,
    "full-spectrum",
    f"{_HERE}.full_spectrum:FullSpectrumMasks",
    title="A reading of Don't just prune by magnitude! Your mask topology is a secret weapon",
    year=2023,
    page="https://papers.nips.cc/paper_files/paper/2023/hash/cd5404354496e39d37b7947d8a0d7b72-Abstract-Conference.html",
)
register(
    _I,
    "lottery-tickets",
    "lowdim.train.tickets.lottery:LotteryTickets",
    title="The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks",
    arxiv="1803.03635",
    year=2019,
    aliases=("imp",),
)
