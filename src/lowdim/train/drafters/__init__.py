"""What a draft model for speculative decoding is trained for."""

from __future__ import annotations

from lowdim.core.registry import register

_HERE = "lowdim.train.drafters"
register(
    "drafter",
    "adaspec",
    f"{_HERE}.adaspec:AdaSPEC",
    title="AdaSPEC: Selective Knowledge Distillation for Efficient Speculative Decoders",
    arxiv="2510.19779",
    year=2025,
)
register(
    "drafter",
    "distillspec",
    f"{_HERE}.distillspec:DistillSpec",
    title="DistillSpec: Improving Speculative Decoding via Knowledge Distillation",
    arxiv="2310.08461",
    year=2023,
)
register("drafter", "ce", f"{_HERE}.cross_entropy:CrossEntropy", title="Cross entropy of the text")
