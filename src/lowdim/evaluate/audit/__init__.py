"""Whole experiments on one model: essential sparsity, Junk DNA, dropped blocks."""

from collections.abc import Mapping
from typing import Literal

from lowdim.core.registry import register

GRID = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

Difficulty = Literal["gap", "options"] | Mapping[str, float]

_HERE = "lowdim.evaluate.audit"
register(
    "audit",
    "essential-sparsity",
    f"{_HERE}.settings:EssentialSparsityAudit",
    title="The Emergence of Essential Sparsity in Large Pre-trained Models: The Weights that Matter",
    arxiv="2306.03805",
    year=2023,
)
register(
    "audit",
    "junk-dna",
    f"{_HERE}.settings:JunkDNAAudit",
    title="Pruning Small Pre-Trained Weights Irreversibly and Monotonically Impairs 'Difficult' Downstream Tasks in "
    "LLMs",
    arxiv="2310.02277",
    year=2024,
)
