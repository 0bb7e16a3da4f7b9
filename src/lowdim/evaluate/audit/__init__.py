"""Whole experiments on one model: essential sparsity, Junk DNA, dropped blocks."""

from lowdim.core.registry import register

_HERE = "lowdim.evaluate.audit"
register(
    "audit",
    "essential-sparsity",
    f"{_HERE}.essential:essential_sparsity",
    title="The Emergence of Essential Sparsity in Large Pre-trained Models: The Weights that Matter",
    arxiv="2306.03805",
    year=2023,
)
register(
    "audit",
    "junk-dna",
    f"{_HERE}.junkdna:junk_dna",
    title="Pruning Small Pre-Trained Weights Irreversibly and Monotonically Impairs 'Difficult' Downstream Tasks in "
    "LLMs",
    arxiv="2310.02277",
    year=2024,
)
