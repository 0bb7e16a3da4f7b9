"""Dynamic sparse training: methods that say when and how the masks of a network in training move."""

from __future__ import annotations

from lowdim.core.registry import register

_HERE = "lowdim.train.dynamic"
_T = "training"
register(_T, "static", f"{_HERE}.static:Static", title="Masks that stand still", arxiv="2202.02643", year=2022)
register(_T, "set", f"{_HERE}.set:SET", title="Sparse evolutionary training", arxiv="1707.04780", year=2018)
register(_T, "rigl", f"{_HERE}.rigl:RigL", title="Rigging the lottery", arxiv="1911.11134", year=2020)
register(_T, "itop", f"{_HERE}.itop:ITOP", title="In-time over-parameterisation", arxiv="2102.02887", year=2021)
register(
    _T,
    "gradual-magnitude",
    f"{_HERE}.gradual:GradualMagnitude",
    title="Gradual magnitude pruning",
    arxiv="1710.01878",
    year=2017,
    aliases=("gmp",),
)
register(_T, "granet", f"{_HERE}.granet:GraNet", title="GraNet", arxiv="2106.10404", year=2021)
register(
    _T,
    "neurrev",
    f"{_HERE}.neurrev:NeurRev",
    title="Neuron revitalization",
    year=2024,
    page="https://openreview.net/forum?id=60lNoatp7u",
)
register(_T, "ctre", f"{_HERE}.ctre:CTRE", title="Cosine growth (CTRE)", arxiv="1903.07138", year=2022)
register(
    _T,
    "chase",
    f"{_HERE}.chase:Chase",
    title="Chase, channel-aware dynamic sparsity",
    arxiv="2305.19454",
    year=2023,
)
register(
    _T,
    "selfish-rnn",
    f"{_HERE}.selfish:SelfishRNN",
    title="Selfish sparse RNN training",
    arxiv="2101.09048",
    year=2021,
)
register(_T, "st-rnn", f"{_HERE}.strnn:STRNN", title="Sparse evolutionary training, gate by gate")
