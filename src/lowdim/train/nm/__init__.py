"""Masks of weights that go on being trained: of a pruned model that recovers, or 2:4 from scratch."""

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
register(
    "from-scratch",
    "fst",
    f"{_HERE}.fst:FST",
    title="Accelerating Transformer Pre-training with 2:4 Sparsity",
    arxiv="2404.01847",
    year=2024,
)
register(
    "from-scratch",
    "s-ste",
    f"{_HERE}.s_ste:SSTE",
    title="S-STE: Continuous Pruning Function for Efficient 2:4 Sparse Pre-training",
    arxiv="2409.09099",
    year=2024,
)
register(
    "from-scratch",
    "sr-ste",
    f"{_HERE}.sr_ste:SRSTE",
    title="Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch",
    arxiv="2102.04010",
    year=2021,
)
register(
    "from-scratch",
    "step",
    f"{_HERE}.step:STEP",
    title="STEP: Learning N:M Structured Sparsity Masks from Scratch with Precondition",
    arxiv="2302.01172",
    year=2023,
)
