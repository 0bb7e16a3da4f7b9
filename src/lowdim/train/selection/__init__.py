"""Selectors that train what they rank with."""

from __future__ import annotations

from lowdim.core.registry import register

register(
    "selector",
    "sebra",
    "lowdim.train.selection.sebra:Sebra",
    title="Sebra: Debiasing through Self-Guided Bias Ranking",
    arxiv="2501.18277",
    year=2025,
)
register(
    "selector",
    "el2n",
    "lowdim.train.selection.el2n:EL2N",
    title="Deep Learning on a Data Diet: Finding Important Examples Early in Training",
    arxiv="2107.07075",
    year=2021,
)
register(
    "selector",
    "confidence",
    "lowdim.train.selection.confidence:Confidence",
    title="Dataset Cartography: Mapping and Diagnosing Datasets with Training Dynamics",
    arxiv="2009.10795",
    year=2020,
)
register(
    "selector",
    "forgetting",
    "lowdim.train.selection.forgetting:Forgetting",
    title="An Empirical Study of Example Forgetting during Deep Neural Network Learning",
    arxiv="1812.05159",
    year=2019,
)
