"""What acts around the steps of any optimizer, without masks: one class each."""

from lowdim.core.registry import register

register(
    "decay",
    "alphadecay",
    "lowdim.train.riders.alphadecay:AlphaDecay",
    title="AlphaDecay: Module-wise Weight Decay for Heavy-Tailed Balancing in LLMs",
    arxiv="2506.14562",
    year=2025,
)
register(
    "sampling",
    "lisa",
    "lowdim.train.riders.lisa:LISA",
    title="LISA: Layerwise Importance Sampling for Memory-Efficient Large Language Model Fine-Tuning",
    arxiv="2403.17919",
    year=2024,
)
register(
    "sampling",
    "ows",
    "lowdim.train.riders.ows:OWS",
    title="OwLore: Outlier-weighed Layerwise Sampled Low-Rank Projection for Memory-Efficient LLM Fine-tuning",
    arxiv="2405.18380",
    year=2024,
    aliases=("owlore",),
)
