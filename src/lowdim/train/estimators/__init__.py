"""Sparse networks that choose features, and truly sparse perceptrons for tables."""

from __future__ import annotations

from lowdim.core.registry import register

_HERE = "lowdim.train.estimators"
_E = "estimator"
register(
    _E,
    "set-mlp",
    f"{_HERE}.setmlp:SetMLP",
    title="Sparse evolutionary deep learning with over one million artificial neurons on commodity hardware",
    arxiv="1901.09181",
    year=2021,
)
register(
    _E,
    "neurofs",
    f"{_HERE}.evolution:NeuronEvolution",
    title="Supervised Feature Selection with Neuron Evolution in Sparse Neural Networks",
    arxiv="2303.07200",
    year=2023,
)
