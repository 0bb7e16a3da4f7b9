"""What holds of a model on disk, read back from it, and put right where a stage has broken it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lowdim.core.files import read_json
from lowdim.core.masks import Masks
from lowdim.core.quantize import decode, nearest
from lowdim.models.disk import manifest
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.masks import pruned_in
from lowdim.models.disk.packed import Packed, pack_levels
from lowdim.models.quantize import linear_weights
from lowdim.models.structure.zeros import mask_of
from lowdim.nn.lowrank import factors_of
from lowdim.pipeline.compose.stage import GRID, MASK, RANK

Value = Tensor | Packed


@dataclass(frozen=True)
class Breach:
    """What a stage broke, by kind: how many weights (of ranks: matrices), in how many matrices, of how many."""

    kind: str
    count: int
    matrices: int
    of: int

    def sentence(self) -> str:
        """Say it.

        Example:
            >>> Breach("mask", 12, 2, 100).sentence()
            '12 of 100 pruned weights were no longer zero, in 2 matrices'
        """
        said = {
            MASK: f"{self.count:,} of {self.of:,} pruned weights were no longer zero",
            GRID: f"{self.count:,} of {self.of:,} rounded weights had left their levels",
            RANK: f"{self.count:,} of {self.of:,} factorised matrices had more directions than they were left",
        }
        return f"{said[self.kind]}, in {self.matrices} {'matrix' if self.matrices == 1 else 'matrices'}"


@dataclass(frozen=True)
class Held:
    """The invariants of a model.

    Attributes:
        masks: kept entries by the weight's name on disk.
        grids: rounded weights as they were stored.
        ranks: by name, directions of factorised matrices.
    """

    masks: Masks = field(default_factory=Masks)
    grids: Mapping[str, Packed] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return plain values: how much is held of each kind."""
        zeros = sum(int((~self.masks[name]).sum()) for name in self.masks)
        grids = sorted({form.grid.name for made in self.grids.values() if (form := made.form).grid is not None})
        return {
            MASK: {"matrices": len(self.masks), "zeros": zeros},
            GRID: {"matrices": len(self.grids), "bits": grids},
            RANK: {"matrices": len(self.ranks), "directions": sum(self.ranks.values())},
        }


def ranks_of(source: Any) -> dict[str, int]:
    """Return the directions of the matrices of a model that is given that were left few, by name.

    Of two factors the files say it. Of dense matrices ``lowdim.json`` or ``pretraining.json`` does, and what a matrix
    does not bear out, since it was trained further, does not hold.
    """
    checkpoint, said = Checkpoint(source.path), dict[str, int]()
    record = manifest.read(source.path) if manifest.exists(source.path) else None
    for each in (record.interventions or []) if record is not None else []:
        said = lower(said, each["facts"].get("ranks", {}))
    if (file := source.path / "pretraining.json").exists():
        said = lower(
            said, {f"{name}.weight": n for name, n in read_json(file).get("rank", {}).get("ranks", {}).items()}
        )
    dense = {name: rank for name, rank in said.items() if name in checkpoint and name not in checkpoint.ranks}
    return {n: r for n, r in dense.items() if not _low_rank(checkpoint.read(n), r)[1]} | checkpoint.ranks


def lower(ranks: Mapping[str, int], made: Mapping[str, int]) -> dict[str, int]:
    """Return the ranks that hold behind a stage that made some: the lower ones."""
    return {**ranks, **{name: min(rank, ranks.get(name, rank)) for name, rank in made.items()}}


def kinds_of(source: Any, ranks: Mapping[str, int], trust_remote_code: bool = False) -> frozenset[str]:
    """Return which invariants a model that is given has: zeros that pruning left, a grid, `ranks_of` it."""
    checkpoint = Checkpoint(source.path)
    grid = any((form := checkpoint.form(name)) is not None and form.grid is not None for name in checkpoint.names())
    record = manifest.read(source.path) if manifest.exists(source.path) else None
    if record is not None and record.sparsity is not None:
        pruned = record.sparsity.target > 0
    else:
        layers = linear_weights(checkpoint, trust_remote_code)
        pruned = not grid and any(mask_of(checkpoint.read(name)) is not None for name in layers)
    found = {MASK: pruned, GRID: grid, RANK: bool(ranks)}
    return frozenset(kind for kind, holds in found.items() if holds)


def read(source: Any, kinds: frozenset[str], ranks: Mapping[str, int]) -> Held:
    """Read what holds of a model from its weights.

    Every zero counts of a weight that ``lowdim.json`` lists as pruned, of another one where 1% of it is zero.

    Args:
        source: a `lowdim.models.disk.source.Source`.
        kinds: which invariants are to be held.
        ranks: those of factorised matrices, which no file says of dense ones.
    """
    checkpoint, masks = Checkpoint(source.path), Masks()
    pruned = pruned_in(checkpoint)
    grids: dict[str, Packed] = {}
    for name in linear_weights(checkpoint, source.trusted):
        form = checkpoint.form(name)
        if GRID in kinds and form is not None and form.grid is not None:
            grids[name] = checkpoint.read_packed(name)
        if MASK in kinds and (mask := mask_of(checkpoint.read(name), name in pruned)) is not None:
            masks.add(name, mask)
    return Held(masks, grids, dict(ranks) if RANK in kinds else {})


def verify(source: Any, held: Held) -> tuple[list[Breach], dict[str, Value]]:
    """Read a model back and compare it with what must hold.

    Returns:
        What was broken, and by name the weights that put it right: nearest of those that hold, pruned ones zero,
        rounded ones on the level and scale that they had.
    """
    checkpoint = Checkpoint(source.path)
    broken: dict[str, list[int]] = {}
    right: dict[str, Value] = {}
    for name in dict.fromkeys([*held.masks, *held.grids, *held.ranks]):
        weight = checkpoint.read(name)
        made: Value = weight
        for kind, holds, mend in _RULES:
            wanted = holds(held, name)
            if wanted is None:
                continue
            made, count = mend(made, wanted)
            if count:
                broken.setdefault(kind, []).append(count)
        if isinstance(made, Packed):
            mended = not torch.equal(made.weight(), weight) or checkpoint.form(name) is None
        else:
            mended = not torch.equal(made, weight)
        if mended:
            right[name] = made
    sizes = {
        MASK: sum(int((~held.masks[name]).sum()) for name in held.masks),
        GRID: sum(made.form.rows * made.form.cols for made in held.grids.values()),
        RANK: len(held.ranks),
    }
    return [Breach(kind, sum(counts), len(counts), sizes[kind]) for kind, counts in broken.items()], right


def _masked(made: Value, mask: Tensor) -> tuple[Value, int]:
    assert isinstance(made, Tensor)
    count = int(((made != 0) & ~mask).sum())
    return (torch.where(mask, made, torch.zeros((), dtype=made.dtype)) if count else made), count


def _on_grid(made: Value, before: Packed) -> tuple[Value, int]:
    """Return a weight on the levels and scales that it had, and how many weights were off them."""
    assert isinstance(made, Tensor) and before.scales is not None
    form, grid = before.form, before.form.grid
    assert grid is not None
    matrix = (made.t() if form.transposed else made.reshape(form.rows, form.cols)).float()
    mask = (before.levels() != 0) & (matrix != 0) if form.masked else None
    levels = torch.zeros(form.rows, form.cols, dtype=torch.int8)
    tables = [None] if before.table is None else list(before.table.reshape(-1, grid.entries))
    step = form.rows // len(tables)
    for place, table in enumerate(tables):
        some = slice(place * step, (place + 1) * step)
        own = None if mask is None else mask[some]
        levels[some] = nearest(matrix[some], own, grid, before.scales[some], table)
    rounded = decode(levels, before.scales, grid).to(made.dtype)
    held = rounded.t() if form.transposed else rounded.reshape(made.shape)
    count = int((held != made).sum())
    return pack_levels(levels, before.scales, form), count


def _low_rank(made: Value, rank: int) -> tuple[Value, int]:
    assert isinstance(made, Tensor)
    near = truncated(made, rank)
    lost = float((made.float() - near.float()).norm() / made.float().norm().clamp_min(1e-30))
    exact = max(torch.finfo(made.dtype).eps, 1e-5)  # as far as a decomposition in fp32 is
    return (near, 1) if lost > exact else (made, 0)


def truncated(weight: Tensor, rank: int) -> Tensor:
    """Return the nearest matrix of a rank in the Frobenius norm, in the weight's own type.

    Example:
        >>> truncated(torch.diag(torch.tensor([3.0, 2.0, 1.0])), 2).diag().round().tolist()
        [3.0, 2.0, 0.0]
    """
    a, b = factors_of(weight, rank)
    return (a @ b).to(weight.dtype)


_RULES: tuple[tuple[str, Callable[[Held, str], Any], Callable[[Value, Any], tuple[Value, int]]], ...] = (
    (RANK, lambda held, name: held.ranks.get(name), _low_rank),
    (MASK, lambda held, name: held.masks.get(name), _masked),
    (GRID, lambda held, name: held.grids.get(name), _on_grid),
)
"""In this order: a grid keeps zeros, and neither keeps a rank, which stages that would have to hold both refuse."""
