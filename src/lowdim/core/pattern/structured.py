"""Attention heads and MLP channels, chosen together for one decoder block and physically removable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from lowdim.core.errors import PatternError, RecipeError
from lowdim.core.lazy import torch
from lowdim.core.pattern.base import Pattern
from lowdim.core.pattern.roles import BlockRoles, find_roles
from lowdim.core.topk import keep_top

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Structured(Pattern):
    """Whole attention heads (with all that share a key-value head) and whole MLP channels.

    The units are those coupled by shape, as in "LLM-Pruner: On the Structural Pruning of Large Language
    Models", arXiv 2305.11627.

    Args:
        heads: remove attention heads.
        channels: remove MLP channels.
    """

    joint: ClassVar[bool] = True
    runs_on: ClassVar[str] = "any device runs it, once what is removed is cut out"

    heads: bool = True
    channels: bool = True

    def __post_init__(self) -> None:
        if not (self.heads or self.channels):
            raise RecipeError("pattern structured needs heads or channels; both are switched off")

    def __str__(self) -> str:
        return "structured"

    @property
    def unit_size(self) -> int:
        """Not defined for one layer: a unit spans several."""
        raise PatternError("a structured unit spans several layers; it has no size within one")

    def check_shape(self, name: str, rows: int, cols: int) -> None:
        """Nothing to check in one layer; the roles of the block are checked when its masks are drawn."""

    def mask(self, scores: Tensor, keep: int) -> Tensor:
        """Not possible for one layer.

        Raises:
            PatternError: always; draw the masks of a whole decoder block with ``masks``.
        """
        raise PatternError("pattern structured draws the masks of a whole decoder block at once, not of one layer")

    def check_block(self, names: Sequence[str], config: Any) -> None:
        """Refuse a block in which heads or channels cannot be told."""
        find_roles(names, config, self.heads, self.channels)

    def joint_masks(self, scores: Mapping[str, Tensor], config: Any, keeps: Mapping[str, int]) -> dict[str, Tensor]:
        """Draw the masks of a block's layers; those that hold neither heads nor channels stay whole."""
        roles = find_roles(list(scores), config, self.heads, self.channels)
        kept, total = sum(keeps[name] for name in scores), sum(each.numel() for each in scores.values())
        drawn = self.masks({name: scores[name] for name in roles.names()}, roles, 1 - kept / total)
        return {name: drawn.get(name, torch.ones_like(each, dtype=torch.bool)) for name, each in scores.items()}

    def masks(self, scores: Mapping[str, Tensor], roles: BlockRoles, sparsity: float) -> dict[str, Tensor]:
        """Draw one decoder block's masks; see ``structured_masks``."""
        return structured_masks(scores, roles, sparsity, heads=self.heads, channels=self.channels)


@dataclass
class _Units:
    """Units of one kind: views of the scores as [units, weights of a unit] or the transpose."""

    count: int
    rows: tuple[str, ...]
    cols: tuple[str, ...]
    weights: int = field(default=0, init=False)

    def measure(self, scores: Mapping[str, Tensor]) -> None:
        for name, size in self._sizes(scores):
            if size % self.count or not size:
                raise PatternError(
                    f"{name} has {size} rows or columns, which do not fall into {self.count} equal units; "
                    "check the number of key-value heads, or prune with another pattern"
                )
            self.weights += scores[name].numel() // self.count

    def _sizes(self, scores: Mapping[str, Tensor]) -> Iterator[tuple[str, int]]:
        yield from ((name, scores[name].shape[0]) for name in self.rows)
        yield from ((name, scores[name].shape[1]) for name in self.cols)

    def values(self, scores: Mapping[str, Tensor]) -> Tensor:
        """Return one value per unit: the sum of its weights' scores, per weight."""
        sums = [scores[name].double().reshape(self.count, -1).sum(1) for name in self.rows]
        sums += [scores[name].double().sum(0).reshape(self.count, -1).sum(1) for name in self.cols]
        return torch.stack([s.cpu() for s in sums]).sum(0) / self.weights

    def masks(self, scores: Mapping[str, Tensor], pruned: int) -> dict[str, Tensor]:
        kept = keep_top(self.values(scores), self.count - pruned)
        made = {}
        for name in self.rows:
            score = scores[name]
            along = kept.repeat_interleave(score.shape[0] // self.count).to(score.device)
            made[name] = along[:, None].expand(score.shape).clone()
        for name in self.cols:
            score = scores[name]
            along = kept.repeat_interleave(score.shape[1] // self.count).to(score.device)
            made[name] = along[None, :].expand(score.shape).clone()
        return made


def structured_masks(
    scores: Mapping[str, Tensor], roles: BlockRoles, sparsity: float, *, heads: bool = True, channels: bool = True
) -> dict[str, Tensor]:
    """Draw the masks of one decoder block so that whole heads and channels can be cut out.

    A head unit is one key-value head: its k and v rows, the q rows of all query heads that share it, and their o
    columns. A channel unit is one row of gate and up and one column of down. A unit's value is the sum of its weights'
    scores divided by their number. round(sparsity * heads) head units fall; as many channels fall as bring the block's
    zeros nearest to sparsity * weights. One unit of each kind always stays.

    Args:
        scores: [out, in] per layer named in ``roles``.
        roles: which layers belong together.
        sparsity: target share of zeros over all layers in ``roles``.
        heads: whether heads may fall; if not, channels carry the whole budget.
        channels: whether channels may fall; if not, heads carry the whole budget.

    Returns:
        bool [out, in] per layer named in ``roles``, True = kept.

    Raises:
        PatternError: a layer is missing or does not fall into whole units.
        NumericalError: a score is NaN.

    Example:
        >>> import torch
        >>> up, down = torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0, 1.0]])
        >>> roles = BlockRoles(channel_rows=("up",), channel_cols=("down",))
        >>> structured_masks({"up": up, "down": down}, roles, 0.5)["down"]
        tensor([[False,  True]])
    """
    if missing := [name for name in roles.names() if name not in scores]:
        raise PatternError(f"no scores for {', '.join(missing)}, which the block's roles name")
    head, channel = _kinds(scores, roles)
    budget = sparsity * sum(scores[name].numel() for name in roles.names())
    wanted = _nearest(sparsity * head.count, 1) if channels and channel.weights else _nearest(budget, head.weights)
    fallen = min(max(wanted, 0), head.count - 1) if heads and head.weights else 0
    rest = _nearest(budget - fallen * head.weights, channel.weights)
    cut = min(max(rest, 0), channel.count - 1) if channels and channel.weights else 0
    made = head.masks(scores, fallen) if head.weights else {}
    return made | (channel.masks(scores, cut) if channel.weights else {})


def _kinds(scores: Mapping[str, Tensor], roles: BlockRoles) -> tuple[_Units, _Units]:
    rows = [scores[name].shape[0] for name in roles.channel_rows]
    cols = [scores[name].shape[1] for name in roles.channel_cols]
    if len(set(rows + cols)) > 1:
        sizes = dict(zip((*roles.channel_rows, *roles.channel_cols), rows + cols, strict=True))
        raise PatternError(f"the MLP layers of one block disagree on the number of channels: {sizes}")
    head = _Units(roles.num_kv_groups, roles.head_rows, roles.head_cols)
    channel = _Units((rows + cols or [1])[0], roles.channel_rows, roles.channel_cols)
    head.measure(scores)
    channel.measure(scores)
    return head, channel


def _nearest(weights: float, unit: int) -> int:
    """Return how many units come nearest to a number of weights; halves round up."""
    return int(weights / unit + 0.5) if unit else 0
