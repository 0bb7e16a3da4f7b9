"""Sparse networks that choose features, and truly sparse perceptrons for tables."""

from __future__ import annotations

from lowdim.core.registry import register

_HERE = "lowdim.train.estimators"
_E = "estimator"
register(
    _E,
    "set-mlp",
    f"{_HERE}.setmlp:SetMLP",
    title="Truly sparse multilayer perceptron",
    arxiv="1901.09181",
    year=2021,
)
register(
    _E,
    "neurofs",
    f"{_HERE}.evolution:NeuronEvolution",
    title="Feature selection by neuron evolution",
    arxiv="2303.07200",
    year=2023,
)
