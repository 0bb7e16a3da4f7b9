"""Several networks made one."""

from __future__ import annotations

from lowdim.core.registry import register

_M = "merger"
register(
    _M,
    "lottery-pools",
    "lowdim.merge.pools:LotteryPools",
    title="Lottery Pools: Winning More by Interpolating Tickets without Increasing Training or Inference Cost",
    arxiv="2208.10842",
    year=2023,
)
register(
    _M,
    "soup",
    "lowdim.merge.soup:Soup",
    title="Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing "
    "inference time",
    arxiv="2203.05482",
    year=2022,
)
