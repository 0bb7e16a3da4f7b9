"""Dynamic sparse training: methods that say when and how the masks of a network in training move."""

from __future__ import annotations

from lowdim.core.registry import register

_HERE = "lowdim.train.dynamic"
_T = "training"
register(
    _T,
    "static",
    f"{_HERE}.static:Static",
    title="The Unreasonable Effectiveness of Random Pruning: Return of the Most Naive Baseline for Sparse Training",
    arxiv="2202.02643",
    year=2022,
)
register(
    _T,
    "set",
    f"{_HERE}.set:SET",
    title="Scalable training of artificial neural networks with adaptive sparse connectivity inspired by network "
    "science",
    arxiv="1707.04780",
    year=2018,
)
register(
    _T,
    "rigl",
    f"{_HERE}.rigl:RigL",
    title="Rigging the Lottery: Making All Tickets Winners",
    arxiv="1911.11134",
    year=2020,
)
register(
    _T,
    "itop",
    f"{_HERE}.itop:ITOP",
    title="Do We Actually Need Dense Over-Parameterization? In-Time Over-Parameterization in Sparse Training",
    arxiv="2102.02887",
    year=2021,
)
register(
    _T,
    "gradual-magnitude",
    f"{_HERE}.gradual:GradualMagnitude",
    title="To prune, or not to prune: exploring the efficacy of pruning for model compression",
    arxiv="1710.01878",
    year=2017,
    aliases=("gmp",),
)
register(
    _T,
    "granet",
    f"{_HERE}.granet:GraNet",
    title="Sparse Training via Boosting Pruning Plasticity with Neuroregeneration",
    arxiv="2106.10404",
    year=2021,
)
register(
    _T,
    "neurrev",
    f"{_HERE}.neurrev:NeurRev",
    title="A reading of NeurRev: Train Better Sparse Neural Network Practically via Neuron Revitalization",
    year=2024,
    page="https://openreview.net/forum?id=60lNoatp7u",
)
register(
    _T,
    "ctre",
    f"{_HERE}.ctre:CTRE",
    title="A Brain-inspired Algorithm for Training Highly Sparse Neural Networks",
    arxiv="1903.07138",
    year=2022,
)
register(
    _T,
    "chase",
    f"{_HERE}.chase:Chase",
    title="Dynamic Sparsity Is Channel-Level Sparsity Learner",
    arxiv="2305.19454",
    year=2023,
)
register(
    _T, "selfish-rnn", f"{_HERE}.selfish:SelfishRNN", title="Selfish Sparse RNN Training", arxiv="2101.09048", year=2021
)
register(
    _T,
    "st-rnn",
    f"{_HERE}.strnn:STRNN",
    title="Efficient and effective training of sparse recurrent neural networks",
    year=2021,
    page="https://doi.org/10.1007/s00521-021-05727-y",
)
