"""Scores: how much a weight is worth."""

from __future__ import annotations

from lowdim.core.registry import register
from lowdim.core.score.base import Score
from lowdim.core.score.magnitude import Magnitude
from lowdim.core.score.obs import OBS
from lowdim.core.score.wanda import Wanda

__all__ = ["OBS", "Magnitude", "Score", "Wanda"]

_HERE = "lowdim.core.score"
register(
    "score", "magnitude", f"{_HERE}.magnitude:Magnitude", title="Magnitude", arxiv="1506.02626", year=2015
)
register(
    "score", "wanda", f"{_HERE}.wanda:Wanda", title="Weights and activations", arxiv="2306.11695", year=2024
)
register("score", "obs", f"{_HERE}.obs:OBS", title="Optimal brain surgeon", arxiv="2301.00774", year=2023)
