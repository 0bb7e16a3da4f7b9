"""Sparse training of recurrent networks."""

from __future__ import annotations

from lowdim.core.registry import register

_HERE = "lowdim.train.recurrent"
_R = "recurrent"
register(
    _R,
    "selfish-rnn",
    f"{_HERE}.selfish:SelfishRNN",
    title="Selfish sparse RNN training",
    arxiv="2101.09048",
    year=2021,
)
register(_R, "st-rnn", f"{_HERE}.strnn:STRNN", title="Sparse evolutionary training, gate by gate")
