"""Masks that move while every weight goes on being trained: N:M in training, and other patterns as well."""

from __future__ import annotations

from lowdim.core.registry import register

_HERE = "lowdim.train.nm"
register(
    "recovery",
    "ast",
    f"{_HERE}.ast:AST",
    title="Pruning Large Language Models with Semi-Structural Adaptive Sparse Training",
    arxiv="2407.20584",
    year=2025,
)
