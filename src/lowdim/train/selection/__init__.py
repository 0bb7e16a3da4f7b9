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
