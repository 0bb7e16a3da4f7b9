"""The layers of a run as rows, and as a grid of decoder blocks by kinds of layer."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

from lowdim.report.draw.words import clean


@dataclass(frozen=True)
class Pruned:
    """One pruned layer; what was not recorded is None."""

    name: str
    block: int | None
    kind: str
    numel: int
    nonzeros: int
    sparsity: float
    target: float | None = None
    error: float | None = None
    value: float | None = None
    mask: str = ""


def kind_of(name: str, block: int | None) -> str:
    """Return a layer's name without its block, with every other number as ``*``.

    Example:
        >>> kind_of("model.layers.3.self_attn.q_proj", 3)
        'self_attn.q_proj'
        >>> kind_of("model.layers.3.mlp.experts.17.up_proj.weight", 3)
        'mlp.experts.*.up_proj'
        >>> kind_of("lm_head", None)
        'lm_head'
    """
    parts = clean(name).removesuffix(".weight").split(".")
    if block is not None and str(block) in parts:
        parts = parts[parts.index(str(block)) + 1 :] or parts
    return re.sub(r"\[\d+\]", "[*]", ".".join("*" if part.isdigit() else part for part in parts))


def short_names(kinds: Iterable[str]) -> dict[str, str]:
    """Return for each kind the shortest ending, in whole words, that tells it from the others.

    Example:
        >>> short_names(["attn.c_attn", "attn.c_proj", "mlp.c_proj"])
        {'attn.c_attn': 'c_attn', 'attn.c_proj': 'attn.c_proj', 'mlp.c_proj': 'mlp.c_proj'}
    """
    kinds = list(dict.fromkeys(kinds))
    shorts: dict[str, str] = {}
    for kind in kinds:
        parts = kind.split(".")
        endings = (".".join(parts[-size:]) for size in range(1, len(parts)))
        others = ["." + other for other in kinds if other != kind]
        shorts[kind] = next((end for end in endings if not any(o.endswith("." + end) for o in others)), kind)
    return shorts


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def layers_of(manifest: Mapping[str, Any]) -> list[Pruned]:
    """Return the pruned layers of a manifest, in its order."""
    values = (manifest.get("allocation") or {}).get("values") or {}
    masks = (manifest.get("hashes") or {}).get("masks") or {}
    rows = []
    for name, entry in (manifest.get("layers") or {}).items():
        numel = int(entry.get("numel") or 0)
        nonzeros = int(entry.get("nonzeros") or 0)
        sparsity = _finite(entry.get("sparsity"))
        rows.append(
            Pruned(
                name=clean(name),
                block=entry.get("block"),
                kind=kind_of(name, entry.get("block")),
                numel=numel,
                nonzeros=nonzeros,
                sparsity=1 - nonzeros / max(numel, 1) if sparsity is None else sparsity,
                target=_finite(entry.get("target")),
                error=_finite(entry.get("error")),
                value=_finite(values.get(name)),
                mask=str(masks.get(name, "")),
            )
        )
    return rows


def mean_sparsity(layers: Iterable[Pruned]) -> float | None:
    """Return the share of zeros over all weights of some layers.

    Example:
        >>> small = Pruned("a", 0, "a", numel=10, nonzeros=10, sparsity=0.0)
        >>> large = Pruned("b", 0, "b", numel=30, nonzeros=10, sparsity=2 / 3)
        >>> mean_sparsity([small, large])
        0.5
    """
    layers = list(layers)
    total = sum(layer.numel for layer in layers)
    return sum(layer.sparsity * layer.numel for layer in layers) / total if total else None


def mean_error(layers: Iterable[Pruned]) -> float | None:
    """Return the mean error of the layers that have one."""
    errors = [layer.error for layer in layers if layer.error is not None]
    return sum(errors) / len(errors) if errors else None


class Placed(Protocol):
    """Something that has a place in a `Grid`."""

    @property
    def block(self) -> int | None:
        """Its decoder block; None outside of the blocks."""

    @property
    def kind(self) -> str:
        """What it is called in each block."""


L = TypeVar("L", bound=Placed)


class Grid(Generic[L]):
    """Layers by kind (row) and decoder block (column); layers outside of the blocks are left out.

    Example:
        >>> grid = Grid([Pruned(f"h.{b}.up", b, "up", 4, 2, 0.5) for b in range(3)])
        >>> grid.kinds, grid.blocks, grid.table(mean_sparsity)
        (['up'], [0, 1, 2], [[0.5, 0.5, 0.5]])
    """

    def __init__(self, layers: Iterable[L]) -> None:
        self.layers = [layer for layer in layers if layer.block is not None]
        self.kinds = list(dict.fromkeys(layer.kind for layer in self.layers))
        self.blocks = sorted({layer.block for layer in self.layers if layer.block is not None})

    @cached_property
    def cells(self) -> dict[tuple[str, int], list[L]]:
        """The layers of each kind and block; several where a block has experts."""
        cells: dict[tuple[str, int], list[L]] = {}
        for layer in self.layers:
            assert layer.block is not None
            cells.setdefault((layer.kind, layer.block), []).append(layer)
        return cells

    @property
    def labels(self) -> list[str]:
        """Short names of the kinds."""
        shorts = short_names(self.kinds)
        return [shorts[kind] for kind in self.kinds]

    def table(self, reduce: Callable[[list[L]], float | None]) -> list[list[float | None]]:
        """Return one number per kind and block."""
        return [[reduce(self.cells.get((kind, block), [])) for block in self.blocks] for kind in self.kinds]

    def per_block(self, reduce: Callable[[list[L]], float | None]) -> list[float | None]:
        """Return one number per block."""
        return [reduce([layer for layer in self.layers if layer.block == block]) for block in self.blocks]
