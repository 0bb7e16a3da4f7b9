"""One weight whose mask is drawn anew while it is trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lowdim.core.errors import LowdimError, NumericalError, PatternError
from lowdim.core.pattern import Pattern
from lowdim.core.score import ColumnScore
from lowdim.train.sparse.distributed import full, local, part


class MovingMask:
    """The mask of one weight, always with as many kept weights as the first one.

    Sharded weights (FSDP2) have this rank's part of it. Where whole rows lie on a rank and each keeps the same number,
    as in N:M, it is drawn from them alone; otherwise the weight is gathered first.

    Args:
        name: of the weight, for messages.
        parameter: [out, in], or [..., out, in] for the matrices of several experts; any floating dtype.
        mask: bool, of that shape, whole on every rank; True = kept.
        pattern: which masks are legal.
        score: what they are drawn by.
        scale: of the columns, fp32 [in] or [..., in]; as ``score.column_scale`` gives it.
        transposed: whether the parameter is [in, out], as in GPT-2.

    Raises:
        LowdimError: mask and weight differ in shape.
        PatternError: the mask is not of the pattern, or the pattern does not fit the weight.

    Example:
        >>> from lowdim.core.pattern import NM
        >>> from lowdim.core.score import Magnitude
        >>> weight = nn.Parameter(torch.tensor([[4.0, 1.0, -3.0, 2.0]]))
        >>> moving = MovingMask("w", weight, torch.tensor([[True, True, False, False]]), NM(2, 4), Magnitude())
        >>> moving.redraw()
        >>> moving.mask.tolist(), moving.projected(weight.data).tolist()
        ([[True, False, True, False]], [[4.0, 0.0, -3.0, 0.0]])
    """

    def __init__(
        self,
        name: str,
        parameter: nn.Parameter,
        mask: Tensor,
        pattern: Pattern,
        score: ColumnScore,
        scale: Tensor | None = None,
        transposed: bool = False,
    ) -> None:
        if mask.shape != parameter.shape or mask.dim() < 2:
            raise LowdimError(
                f"the mask of {name} has shape {tuple(mask.shape)}, the weight has {tuple(parameter.shape)}; give the "
                "masks of this model's matrices"
            )
        self.name, self.parameter = name, parameter
        self._score, self._transposed = score, transposed
        matrices = self._matrices(mask)
        self._scales = self._scales_of(scale, len(matrices), matrices[0].shape[1])
        shares = [1.0 - int(each.sum()) / max(1, each.numel()) for each in matrices]
        self._patterns = [pattern.at(zeros) for zeros in shares]
        for each in matrices:
            pattern.check_shape(name, *each.shape)
        self._keeps = [
            legal.keeps([each.numel()], [zeros])[0]
            for legal, each, zeros in zip(self._patterns, matrices, shares, strict=True)
        ]
        self._check(mask, pattern)
        self._own_rows = self._compares_rows(pattern, matrices[0].shape[0])
        self.mask = part(mask.to(local(parameter).device), parameter)
        self.first = self.before = self.mask

    # ---------------------------------------------------------------- what masks may be

    def _matrices(self, tensor: Tensor) -> list[Tensor]:
        """Return the matrices of a tensor of the weight's shape, each [out, in], sharing its memory."""
        found = tensor.reshape(-1, *tensor.shape[-2:])
        return list((found.transpose(1, 2) if self._transposed else found).unbind(0))

    def _scales_of(self, scale: Tensor | None, count: int, width: int) -> list[Tensor | None]:
        if scale is None:
            return [None] * count
        found = scale.detach().float().reshape(-1, scale.shape[-1])
        if found.shape[1] != width or len(found) not in (1, count):
            raise LowdimError(
                f"the column scales of {self.name} have shape {tuple(scale.shape)}; it has {width} inputs and "
                f"{count} matrices"
            )
        return list(found.expand(count, -1).to(local(self.parameter).device).unbind(0))

    def _check(self, mask: Tensor, pattern: Pattern) -> None:
        """Refuse a mask that the pattern would not draw, whatever the scores."""
        try:
            legal = self._joined([p.mask(m.float(), k) for p, m, k in self._each(mask)], mask)
        except ValueError as error:
            raise PatternError(f"the mask of {self.name} is not one of pattern {pattern}: {error}") from error
        if wrong := int((mask & ~legal).sum()):
            raise PatternError(
                f"the mask of {self.name} is not one of pattern {pattern}: {wrong} kept weights are where another "
                "group has its share. Give the pattern that the masks were drawn with (unstructured in the group "
                '"matrix" takes any)'
            )

    def _each(self, tensor: Tensor) -> Sequence[tuple[Pattern, Tensor, int]]:
        return list(zip(self._patterns, self._matrices(tensor), self._keeps, strict=True))

    def _joined(self, masks: Sequence[Tensor], like: Tensor) -> Tensor:
        made = torch.stack(list(masks))
        return (made.transpose(1, 2) if self._transposed else made).reshape(like.shape)

    def _compares_rows(self, pattern: Pattern, rows: int) -> bool:
        """Tell whether a shard's mask can be drawn from its own rows."""
        weight = self.parameter
        if not isinstance(weight, DTensor) or weight.dim() != 2 or self._transposed:
            return False
        whole_rows = all(place.is_replicate() or place.is_shard(0) for place in weight.placements)
        equal_rows = self._keeps[0] % max(1, rows) == 0 and (pattern.groups_of > 0 or pattern.compares == "row")
        return whole_rows and equal_rows

    # ---------------------------------------------------------------- around an optimizer step

    def projected(self, weight: Tensor) -> Tensor:
        """Return what the model computes with: this rank's weight, +0.0 where it is pruned."""
        return (weight * self.mask).add_(0.0)  # which turns -0.0 into +0.0

    @torch.no_grad()
    def add_decay(self, decay: float) -> None:
        """Add ``decay`` * (1 - m) * W to the gradient, if there is one."""
        if self.parameter.grad is not None:
            local(self.parameter.grad).addcmul_(local(self.parameter), ~self.mask, value=decay)

    @torch.no_grad()
    def redraw(self) -> None:
        """Draw the mask from the weights as they are.

        Raises:
            NumericalError: a weight is NaN; names it.
        """
        self.before = self.mask
        try:
            if self._own_rows:
                self.mask = self._draw_rows(local(self.parameter))
            else:
                self.mask = part(self._draw(full(self.parameter), self._keeps), self.parameter)
        except NumericalError as error:
            raise NumericalError(f"{self.name} holds NaN, so no mask can be chosen: training has diverged") from error

    def _draw(self, weight: Tensor, keeps: Sequence[int]) -> Tensor:
        scores = [self._score.scaled(m, s) for m, s in zip(self._matrices(weight), self._scales, strict=True)]
        drawn = [p.mask(each.contiguous(), k) for p, each, k in zip(self._patterns, scores, keeps, strict=True)]
        return self._joined(drawn, weight)

    def _draw_rows(self, weight: Tensor) -> Tensor:
        """Draw the mask of this rank's rows, of which there may be none."""
        each = self._keeps[0] // max(1, self.parameter.shape[0])
        return self._draw(weight, [each * len(weight)]) if len(weight) else self.mask

    def moved(self) -> Tensor:
        """Return how many weights changed sides at the last draw, and since the first mask, and all: int64 [3].

        Of this rank's part.
        """
        since = [(self.mask != other).sum() for other in (self.before, self.first)]
        return torch.stack([*since, torch.full_like(since[0], self.mask.numel())])

    # ---------------------------------------------------------------- whole masks

    def whole(self, mask: Tensor) -> Tensor:
        """Return the whole of a mask, bool of the weight's shape; every rank must call it."""
        weight = self.parameter
        if not isinstance(weight, DTensor):
            return mask
        cut = DTensor.from_local(
            mask.to(torch.uint8),
            weight.device_mesh,
            weight.placements,
            run_check=False,
            shape=weight.shape,
            stride=weight.stride(),
        )
        return full(cut).bool()

    def load(self, mask: Tensor, first: Tensor) -> None:
        """Take whole masks: the one now, and the first."""
        device = local(self.parameter).device
        self.mask, self.first = (part(each.to(device), self.parameter) for each in (mask, first))
        self.before = self.mask
