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

__getattr__, __dir__, __all__ = attach(__name__)
