"""Where the norms of a decoder block stand, and what scales its branches: for training deep networks.

Each name that ``__init__.pyi`` lists is loaded when it is first used.
"""

from __future__ import annotations

from lowdim.core.lazy import attach
from lowdim.core.registry import register

_HERE = "lowdim.nn.placement"
_P = "placement"
register(
    _P,
    "pre-ln",
    f"{_HERE}.pre_ln:PreLN",
    title="On Layer Normalization in the Transformer Architecture",
    arxiv="2002.04745",
    year=2020,
)
register(
    _P,
    "post-ln",
    f"{_HERE}.post_ln:PostLN",
    title="Attention Is All You Need",
    arxiv="1706.03762",
    year=2017,
)
register(
    _P,
    "sandwich",
    f"{_HERE}.sandwich:Sandwich",
    title="CogView: Mastering Text-to-Image Generation via Transformers",
    arxiv="2105.13290",
    year=2021,
)
register(
    _P,
    "deepnorm",
    f"{_HERE}.deepnorm:DeepNorm",
    title="DeepNet: Scaling Transformers to 1,000 Layers",
    arxiv="2203.00555",
    year=2022,
)
register(
    _P,
    "mix-ln",
    f"{_HERE}.mix_ln:MixLN",
    title="Mix-LN: Unleashing the Power of Deeper Layers by Combining Pre-LN and Post-LN",
    arxiv="2412.13795",
    year=2025,
)
register(
    _P,
    "lns",
    f"{_HERE}.lns:LayerNormScaling",
    title="The Curse of Depth in Large Language Models",
    arxiv="2502.05795",
    year=2025,
)
register(
    _P,
    "lns-learned",
    f"{_HERE}.lns_learned:LearnedLayerNormScaling",
    title="The gains of LayerNorm Scaling, learned; in the code of GPAS: Accelerating Convergence of LLM Pretraining",
    arxiv="2506.22049",
    year=2025,
)
register(
    _P,
    "gpas",
    f"{_HERE}.gpas:GPAS",
    title="GPAS: Accelerating Convergence of LLM Pretraining via Gradient-Preserving Activation Scaling",
    arxiv="2506.22049",
    year=2025,
)
register(
    _P,
    "prores",
    f"{_HERE}.prores:ProRes",
    title="Progressive Residual Warmup for Language Model Pretraining",
    arxiv="2603.05369",
    year=2026,
)
register(
    _P,
    "scaled-init",
    f"{_HERE}.scaled_init:ScaledInit",
    title="Megatron-LM: Training Multi-Billion Parameter Language Models Using Model Parallelism",
    arxiv="1909.08053",
    year=2019,
)
register(
    _P,
    "depth-scaled-init",
    f"{_HERE}.depth_scaled_init:DepthScaledInit",
    title="Improving Deep Transformer with Depth-Scaled Initialization and Merged Attention",
    arxiv="1908.11365",
    year=2019,
)

__getattr__, __dir__, __all__ = attach(__name__)
