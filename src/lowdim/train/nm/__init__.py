"""Masks while a pruned model is trained: fixed, or moving while every weight goes on being trained."""

from __future__ import annotations

from lowdim.core.registry import register

_HERE = "lowdim.train.nm"
register("masks", "fixed", f"{_HERE}.fixed:Fixed", title="Zeros stay where they are")
register(
    "masks",
    "ast",
    f"{_HERE}.ast:AST",
    title="Pruning Large Language Models with Semi-Structural Adaptive Sparse Training",
    arxiv="2407.20584",
    year=2025,
)
