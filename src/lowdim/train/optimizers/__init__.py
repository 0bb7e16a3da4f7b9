"""Optimizers: what a step does with the gradients."""

from __future__ import annotations

from lowdim.core.registry import register

_HERE = "lowdim.train.optimizers"
register(
    "optimizer",
    "adamw",
    f"{_HERE}.adam:AdamW",
    title="Decoupled Weight Decay Regularization",
    arxiv="1711.05101",
    year=2019,
)
register(
    "optimizer",
    "adam",
    f"{_HERE}.adam:Adam",
    title="Adam: A Method for Stochastic Optimization",
    arxiv="1412.6980",
    year=2015,
)
register(
    "optimizer", "muon", f"{_HERE}.muon:Muon", title="Muon is Scalable for LLM Training", arxiv="2502.16982", year=2025
)
register(
    "optimizer",
    "galore",
    f"{_HERE}.galore:GaLore",
    title="GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection",
    arxiv="2403.03507",
    year=2024,
)
register(
    "optimizer",
    "apollo",
    f"{_HERE}.apollo:APOLLO",
    title="APOLLO: SGD-like Memory, AdamW-level Performance",
    arxiv="2412.05270",
    year=2024,
)
register(
    "optimizer",
    "q-galore",
    f"{_HERE}.q_galore:QGaLore",
    title="Q-GaLore: Quantized GaLore with INT4 Projection and Layer-Adaptive Low-Rank Gradients",
    arxiv="2407.08296",
    year=2024,
)
register(
    "optimizer",
    "lift",
    f"{_HERE}.lift:LIFT",
    title="LIFT the Veil for the Truth: Principal Weights Emerge after Rank Reduction for Reasoning-Focused Supervised "
    "Fine-Tuning",
    arxiv="2506.00772",
    year=2025,
)
