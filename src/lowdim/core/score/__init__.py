"""Scores: how much a weight is worth."""

from __future__ import annotations

from lowdim.core.registry import register
from lowdim.core.score.base import ColumnScore, Evidence, GradientScore, Score
from lowdim.core.score.magnitude import Magnitude
from lowdim.core.score.obs import OBS
from lowdim.core.score.saliency import Saliency
from lowdim.core.score.taylor import Taylor
from lowdim.core.score.wanda import Wanda

__all__ = [
    "OBS",
    "ColumnScore",
    "Evidence",
    "GradientScore",
    "Magnitude",
    "Saliency",
    "Score",
    "Taylor",
    "Wanda",
]

_HERE = "lowdim.core.score"
register(
    "score",
    "magnitude",
    f"{_HERE}.magnitude:Magnitude",
    title="Learning both Weights and Connections for Efficient Neural Networks",
    arxiv="1506.02626",
    year=2015,
)
register(
    "score",
    "wanda",
    f"{_HERE}.wanda:Wanda",
    title="A Simple and Effective Pruning Approach for Large Language Models",
    arxiv="2306.11695",
    year=2024,
)
register(
    "score",
    "obs",
    f"{_HERE}.obs:OBS",
    title="SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
    arxiv="2301.00774",
    year=2023,
)
register(
    "score",
    "saliency",
    f"{_HERE}.saliency:Saliency",
    title="SNIP: Single-shot Network Pruning based on Connection Sensitivity",
    arxiv="1810.02340",
    year=2019,
)
register(
    "score",
    "taylor",
    f"{_HERE}.taylor:Taylor",
    title="Importance Estimation for Neural Network Pruning",
    arxiv="1906.10771",
    year=2019,
)
