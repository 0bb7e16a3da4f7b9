"""Which samples an epoch trains on: one class each."""

from lowdim.core.registry import register

_HERE = "lowdim.train.samplers"
register("sampler", "shuffled", f"{_HERE}.shuffled:Shuffled", title="Every sample once an epoch")
register("sampler", "weighted", f"{_HERE}.weighted:WeightedSampler", title="Small groups or classes drawn more often")
register(
    "sampler", "group-balanced", f"{_HERE}.group_balanced:GroupBalanced", title="Equally many samples of every group"
)
register(
    "sampler",
    "pairs",
    f"{_HERE}.pairs:Pairs",
    title="Sebra: Debiasing through Self-Guided Bias Ranking",
    arxiv="2501.18277",
    year=2025,
)
register(
    "sampler",
    "ranked",
    f"{_HERE}.ranked:RankedShare",
    title="Are Sparse Neural Networks Better Hard Sample Learners?",
    arxiv="2409.09196",
    year=2024,
)
register(
    "sampler",
    "dynamic-pruning",
    f"{_HERE}.dynamic_pruning:DynamicPruning",
    title="Dynamic Data Pruning for Automatic Speech Recognition",
    arxiv="2406.18373",
    year=2024,
    aliases=("ddp",),
)
