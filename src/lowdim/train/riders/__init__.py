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
