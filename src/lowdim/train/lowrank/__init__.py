"""Low rank: how many directions each factorised layer has."""

from __future__ import annotations

from lowdim.core.registry import register

_HERE = "lowdim.train.lowrank"
register("rank", "uniform", f"{_HERE}.uniform:UniformRank", title="The same share of the full rank in every layer")
register(
    "rank",
    "linear",
    f"{_HERE}.linear:LinearRank",
    title="Full-Rank No More: Low-Rank Weight Training for Modern Speech Recognition Models",
    arxiv="2410.07771",
    year=2025,
)
register(
    "rank",
    "welore",
    f"{_HERE}.welore:WeLore",
    title="From Low Rank Gradient Subspace Stabilization to Low-Rank Weights: Observations, Theories, and Applications",
    arxiv="2407.11239",
    year=2025,
)
