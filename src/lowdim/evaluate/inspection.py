"""What an inspection found: numbers per layer, block and model, as tables and as plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lowdim.core.allocation.owl import Pooling
from lowdim.evaluate.present import Table, jsonable, number

Outliers = dict[Pooling, dict[str, list[float | None]]]


@dataclass(frozen=True)
class LayerFacts:
    """A prunable layer.

    Attributes:
        name: full dotted name.
        block: index of its decoder block.
        numel: weights.
        zeros: weights that are exactly zero, of either sign.
        alpha: exponent of its spectrum's tail; ``None`` if it was not asked for or there is none.
        rank: of its weight, where that is stored as two factors; ``numel`` and ``zeros`` are then those of the product.
    """

    name: str
    block: int
    numel: int
    zeros: int
    alpha: float | None = None
    rank: int | None = None

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return self.zeros / max(1, self.numel)


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    Attributes:
        model: how the user named it.
        blocks: number of decoder blocks.
        layers: the prunable layers, in order.
        weights: weights of the whole model, tied ones counted once, and products as they are multiplied out.
        outliers: per pooling and per M the outlier share of each block, a fraction; ``None`` for a block without
            prunable layers. Empty if nothing was calibrated on.
        skipped: ``(name, reason)`` of every matrix in the blocks that is not prunable.
        notes: what was not done, and why.
        data: the record of the calibration data.
        revision: branch, tag or commit of a hub id.
        dtype: of the weights.
        support: "supported", or "refused: " and why calibration would be.
    """

    model: str
    blocks: int
    layers: list[LayerFacts]
    weights: int
    outliers: Outliers = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    revision: str | None = None
    dtype: str = ""
    support: str = "supported"
    stored: int | None = None
    """Weights as they are stored, where some layers are two factors."""

    @property
    def sparsity(self) -> float:
        """Share of zeros over the prunable layers."""
        return _share(self.layers)

    @property
    def model_sparsity(self) -> float:
        """Zeros of the prunable layers over all weights of the model, as in ``lowdim.json``."""
        return sum(layer.zeros for layer in self.layers) / max(1, self.weights)

    def block_sparsity(self, block: int) -> float:
        """Share of zeros over the prunable layers of one block."""
        return _share([layer for layer in self.layers if layer.block == block])

    def block_alpha(self, block: int) -> float | None:
        """Mean alpha of a block's layers, which AlphaPruning goes by; ``None`` if no layer has one."""
        found = [layer.alpha for layer in self.layers if layer.block == block and layer.alpha is not None]
        return math.fsum(found) / len(found) if found else None

    def probes(self) -> dict[str, Any]:
        """Return the manifest's ``probes``; ``outliers`` is pooled by block, as OWL is by default."""
        found: dict[str, Any] = {}
        if self.outliers:
            found |= {"outliers": self.outliers["block"], "outliers_by_layer": self.outliers["layer"]}
        alpha = {layer.name: layer.alpha for layer in self.layers if layer.alpha is not None}
        return found | ({"alpha": alpha} if alpha else {})

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, named as in ``lowdim.json``."""
        layers = {
            layer.name: {
                "numel": layer.numel,
                "nonzeros": layer.numel - layer.zeros,
                "sparsity": layer.sparsity,
                "block": layer.block,
            }
            | ({} if layer.rank is None else {"rank": layer.rank})
            for layer in self.layers
        }
        plain: dict[str, Any] = jsonable(
            {
                "model": self.model,
                "revision": self.revision,
                "dtype": self.dtype,
                "support": self.support,
                "data": {"calibration": self.data} if self.data else {},
                "layers": layers,
                "skipped": [{"name": name, "reason": reason} for name, reason in self.skipped],
                "sparsity": {
                    "prunable": self.sparsity,
                    "model": self.model_sparsity,
                    "blocks": [self.block_sparsity(block) for block in range(self.blocks)],
                },
                "probes": self.probes(),
                "notes": self.notes,
            }
            | ({} if self.stored is None else {"stored": self.stored})
        )
        return plain

    def tables(self) -> list[Table]:
        """Return tables of the layers, of the blocks and, if there are any, of outlier shares pooled by layer."""
        blocks = {"sparsity": [number(self.block_sparsity(block)) for block in range(self.blocks)]}
        if any(layer.alpha is not None for layer in self.layers):
            blocks["alpha"] = [number(self.block_alpha(block), 3) for block in range(self.blocks)]
        if not self.outliers:
            return [self._by_layer(), _by_block("Blocks", blocks)]
        return [
            self._by_layer(),
            _by_block("Blocks, and their shares of outliers above M times the mean", blocks | self._shares("block")),
            _by_block("Outlier shares of each layer by itself, their mean over the block", self._shares("layer")),
        ]

    def _shares(self, pooling: Pooling) -> dict[str, list[str]]:
        return {
            f"M={m}": ["-" if share is None else f"{share:.3%}" for share in shares]
            for m, shares in self.outliers[pooling].items()
        }

    def _by_layer(self) -> Table:
        ranks = self.stored is not None
        heads = ("layer", "weights", "zeros", "sparsity", "alpha", *(("rank",) if ranks else ()))
        rows: list[tuple[str, ...]] = [
            (
                layer.name,
                f"{layer.numel:,}",
                f"{layer.zeros:,}",
                number(layer.sparsity),
                number(layer.alpha, 3),
                *((("-" if layer.rank is None else str(layer.rank)),) if ranks else ()),
            )
            for layer in self.layers
        ]
        return Table("Layers", heads, rows)

    def summary(self) -> str:
        """Return the lines that stand below the tables."""
        lines = [
            f"{self.model}: {self.blocks} blocks, {len(self.layers)} prunable layers, {self.weights:,} weights",
            f"pruning with calibration: {self.support}",
            f"sparsity {self.sparsity:.4f} of the prunable layers, {self.model_sparsity:.4f} of the model",
            *self._factors(),
            *self.notes,
        ]
        kinds: dict[str, int] = {}
        for _, reason in self.skipped:
            kinds[reason] = kinds.get(reason, 0) + 1
        return "\n".join([*lines, *(f"left out, {count} times: {reason}" for reason, count in kinds.items())])

    def _factors(self) -> list[str]:
        ranks = [layer.rank for layer in self.layers if layer.rank is not None]
        if self.stored is None or not ranks:
            return []
        return [
            f"{len(ranks)} of {len(self.layers)} layers are two factors, of rank {min(ranks)} to {max(ranks)}: "
            f"{self.stored:,} weights are stored"
        ]

    def render(self) -> str:
        """Return everything as text."""
        return "\n\n".join([*(table.text() for table in self.tables()), self.summary()])


def _share(layers: Sequence[LayerFacts]) -> float:
    return sum(layer.zeros for layer in layers) / max(1, sum(layer.numel for layer in layers))


def _by_block(title: str, columns: Mapping[str, Sequence[str]]) -> Table:
    rows = [(str(block), *cells) for block, cells in enumerate(zip(*columns.values(), strict=True))]
    return Table(title, ("block", *columns), rows)
