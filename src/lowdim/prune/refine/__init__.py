"""Refinement: moving a finished mask, without touching the weights' values."""

from lowdim.core.registry import register

register("refine", "none", "lowdim.prune.refine.none:NoRefine", title="The mask stays as it was drawn")
register(
    "refine",
    "dsnot",
    "lowdim.prune.refine.dsnot:DSnoT",
    title="Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse LLMs",
    arxiv="2310.08915",
    year=2024,
)
