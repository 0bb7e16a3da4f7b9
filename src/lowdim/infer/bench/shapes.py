"""Named shapes of the Llama family, for measuring where no model is at hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaConfig


@dataclass(frozen=True)
class Shape:
    """The sizes that decide a Llama's speed.

    Attributes:
        hidden: width of the residual stream.
        intermediate: width of the MLP.
        layers: decoder blocks.
        heads: query heads.
        kv_heads: key and value heads.
        vocab: rows of the embedding and the head.
        tied: whether the head is the embedding.

    Example:
        >>> SHAPES["llama-7b"].linears()["mlp.down_proj"]
        (4096, 11008)
        >>> round(SHAPES["llama-7b"].weights / 1e9, 2)
        6.74
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool

    def linears(self) -> dict[str, tuple[int, int]]:
        """Return rows and columns of every linear layer of a block, under its name there."""
        keys = self.hidden // self.heads * self.kv_heads
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (keys, self.hidden),
            "self_attn.v_proj": (keys, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }

    @property
    def block(self) -> int:
        """Weights of a block's linear layers."""
        return sum(rows * cols for rows, cols in self.linears().values())

    @property
    def outer(self) -> int:
        """Weights of the embedding and the head."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def weights(self) -> int:
        """Weights of the whole model, norms left out."""
        return self.layers * self.block + self.outer

    def config(self, layers: int | None = None) -> LlamaConfig:
        """Return the Transformers config, of another depth if given."""
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers if layers is None else layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=4096,
            tie_word_embeddings=self.tied,
        )


SHAPES = {
    "llama-7b": Shape(4096, 11008, 32, 32, 32, 32000, tied=False),  # LLaMA 1 and 2
    "llama-1b": Shape(2048, 8192, 16, 32, 8, 128256, tied=True),  # Llama 3.2
    "smollm2-135m": Shape(576, 1536, 30, 9, 3, 49152, tied=True),
}
