"""MiniLM: features of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowdim.data import assets
from lowdim.models.load import quiet

LENGTH = 128


class MiniLM(nn.Module):
    """Features of texts: the mean of a BERT's last hidden states over the tokens of each, all-MiniLM-L6-v2.

    Paper: "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers", 2020,
    arXiv 2002.10957.

    Attributes:
        width: features of a text.
    """

    def __init__(self, inner: nn.Module, width: int) -> None:
        super().__init__()
        self.inner, self.width = inner, width

    def forward(self, x: Tensor) -> Tensor:
        """Map token ids [texts, tokens], 0 behind the end, to features [texts, width]."""
        mask = x != 0
        used = max(1, int(mask.sum(1).max()))  # what is padding in all texts is not computed
        x, mask = x[:, :used], mask[:, :used]
        states = self.inner(input_ids=x, attention_mask=mask.long()).last_hidden_state
        weight = mask.unsqueeze(2).to(states)
        found: Tensor = (states * weight).sum(1) / weight.sum(1).clamp_min(1)
        return found


def minilm() -> MiniLM:
    """Return the network with its weights, in evaluation mode, fetching them on first use."""
    from transformers import AutoModel

    home = str(assets.path("minilm"))
    with quiet():
        inner: Any = AutoModel.from_pretrained(home, dtype=torch.float32, attn_implementation="sdpa")
    for parameter in inner.parameters():  # out of the mapped file, whose pages the system may take back
        parameter.data = parameter.data.clone()
    return MiniLM(inner, inner.config.hidden_size).eval()


def tokenized(texts: Sequence[str]) -> Tensor:
    """Return the ids of the first 128 tokens of each text, int64 [texts, 128], 0 behind the end."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(assets.path("minilm")))
    found = tokenizer(list(texts), truncation=True, max_length=LENGTH, padding="max_length", return_tensors="pt")
    ids: Tensor = found["input_ids"]
    return ids
