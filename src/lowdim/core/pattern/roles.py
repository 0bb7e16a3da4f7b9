"""Which layers of a decoder block gain and lose heads and channels together, told by their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lowdim.core.errors import PatternError


@dataclass(frozen=True)
class BlockRoles:
    """Which layers of one decoder block lose which rows and columns together.

    Attributes:
        head_rows: layers whose output rows belong to heads (q, k, v), in ``num_kv_groups`` equal runs.
        head_cols: layers whose input columns belong to heads (o), in as many equal runs.
        channel_rows: layers whose output rows are MLP channels (gate and up, or fc1).
        channel_cols: layers whose input columns are MLP channels (down, or fc2).
        num_kv_groups: key-value heads; query heads that share one go with it.
    """

    head_rows: tuple[str, ...] = ()
    head_cols: tuple[str, ...] = ()
    channel_rows: tuple[str, ...] = ()
    channel_cols: tuple[str, ...] = ()
    num_kv_groups: int = 1

    def names(self) -> tuple[str, ...]:
        """Return every layer named."""
        return (*self.head_rows, *self.head_cols, *self.channel_rows, *self.channel_cols)


_HEAD_ROWS = ("q_proj", "k_proj", "v_proj")
_HEAD_COLS = ("attn.o_proj", "attn.out_proj", "attn.dense")
_CHANNEL_ROWS = ("mlp.gate_proj", "mlp.up_proj", "fc1", "mlp.c_fc", "dense_h_to_4h")
_CHANNEL_COLS = ("mlp.down_proj", "fc2", "mlp.c_proj", "dense_4h_to_h")


def find_roles(names: Sequence[str], config: Any, heads: bool, channels: bool) -> BlockRoles:
    """Return the roles of one block's layers.

    Args:
        names: the block's prunable layers.
        config: the model's configuration, which knows the number of key-value heads.
        heads: attention heads are to be pruned.
        channels: MLP channels are to be pruned.

    Raises:
        PatternError: the block has no layers of these names (q, k and v packed into one, or a mixture of experts).

    Example:
        >>> class Config: num_key_value_heads = 2
        >>> names = [f"b.self_attn.{x}_proj" for x in "qkvo"]
        >>> find_roles(names, Config, heads=True, channels=False).head_cols
        ('b.self_attn.o_proj',)
    """

    def ending(suffixes: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in names if name.endswith(suffixes))

    rows, columns = ending(_HEAD_ROWS), ending(_HEAD_COLS)
    if heads and not (len(rows) == 3 and len(columns) == 1):
        raise PatternError(
            f"pattern structured finds no separate q, k, v and output layers among {list(names)}, so it cannot remove "
            "heads. Set pattern.heads=false, or choose another pattern."
        )
    wide, narrow = ending(_CHANNEL_ROWS), ending(_CHANNEL_COLS)
    if channels and not (wide and len(narrow) == 1):
        raise PatternError(
            f"pattern structured finds no plain MLP among {list(names)}, so it cannot remove channels. Set "
            "pattern.channels=false, or choose another pattern."
        )
    groups = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return BlockRoles(
        head_rows=rows if heads else (),
        head_cols=columns if heads else (),
        channel_rows=wide if channels else (),
        channel_cols=narrow if channels else (),
        num_kv_groups=groups,
    )
