"""The plan of a run, made from shapes alone: layers, budgets, memory, time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from lowdim.core.allocation import LayerInfo
from lowdim.core.progress import Silent
from lowdim.core.score.base import GRADIENT
from lowdim.prune.budgets import budgets
from lowdim.prune.run import needs_data
from lowdim.prune.scan import allocate
from lowdim.prune.session import Session, sizes

ACTIVATION_COPIES = 2
"""Hidden states in, hidden states out: both exist while a block runs."""


@dataclass(frozen=True)
class PlannedLayer:
    """A layer, and the share of zeros it will get; ``None`` if that is decided on calibration data."""

    info: LayerInfo
    sparsity: float | None


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        layers: the layers to prune.
        skipped: ``(name, reason)`` of matrices that stay dense.
        target: share of zeros over the pruned layers.
        storage: form in which the pruned layers are written.
        stored: bytes that they take, scales and masks included.
        memory: estimated peak of weights, activations and statistics, bytes.
        seconds: estimated time of the forwards, from a matrix product timed just now.
    """

    layers: list[PlannedLayer]
    skipped: list[tuple[str, str]]
    target: float
    storage: str
    stored: int
    memory: dict[str, int]
    seconds: float

    def render(self) -> str:
        """Return the plan as text."""
        weights = sizes([layer.info for layer in self.layers])
        lines = [
            f"{len(self.layers)} layers, {weights:,} weights, {self.target:.1%} of them to become zero",
            "",
        ]
        width = max((len(layer.info.name) for layer in self.layers), default=0)
        for layer in self.layers:
            share = "decided on the data" if layer.sparsity is None else f"{layer.sparsity:.4f}"
            lines.append(f"  {layer.info.name:<{width}}  {layer.info.rows:>6} x {layer.info.cols:<6}  {share}")
        if self.skipped:
            lines += ["", "Left dense:"]
            lines += [f"  {name}: {reason}" for name, reason in self.skipped]
        bits = 8 * self.stored / max(weights, 1)
        lines += [
            "",
            f"Written: {self.storage}, about {self.stored / 2**20:,.0f} MB, {bits:.2f} bits per weight",
        ]
        total = sum(self.memory.values())
        parts = ", ".join(f"{name} {size / 2**20:,.0f} MB" for name, size in self.memory.items())
        lines += [f"Memory beyond Python and torch: about {total / 2**20:,.0f} MB ({parts})"]
        lines.append(f"Time of the forward passes: about {_duration(self.seconds)} on this machine")
        return "\n".join(lines)


def make_plan(session: Session) -> Plan:
    """Plan a run; budgets that depend on data or weights are left open."""
    recipe = session.recipe
    shares: dict[str, float | None] = {info.name: None for info in session.layers}
    if not recipe.allocation.reads_weights:
        made = allocate(session, [], Silent())
        plan = budgets(session.layers, made.sparsities, recipe.legal)
        shares = {info.name: 1 - plan[info.name].keep / info.numel for info in session.layers}
    layers = [PlannedLayer(info, shares[info.name]) for info in session.layers]
    storage = recipe.storage if recipe.grid is None else f"{recipe.storage}, {recipe.quantize}"
    stored = sum(_stored(session, layer) for layer in layers)
    return Plan(layers, session.skipped, recipe.target, storage, stored, _memory(session), _seconds(session))


def _stored(session: Session, layer: PlannedLayer) -> int:
    """Return the bytes that a layer takes on disk; at the mean sparsity if its own is not known yet."""
    recipe, info = session.recipe, layer.info
    share = recipe.target if layer.sparsity is None else layer.sparsity
    values = info.numel - round(share * info.numel)
    dense = info.numel * session.stored.itemsize
    mask = info.rows * -(-info.cols // 64) * 8
    if recipe.grid is not None:
        scales = 2 * info.rows * recipe.grid.groups(info.cols)
        return mask + scales + values * recipe.grid.bits // 8 + (16 if recipe.grid.bits == 4 else 0)
    return min(dense, mask + values * session.stored.itemsize) if recipe.storage == "packed" else dense


def _tokens(session: Session) -> int:
    if not needs_data(session):
        return 0
    settings = session.recipe.calibration
    limit = getattr(session.config, "max_position_embeddings", None)
    return settings.samples * (settings.context or min(2048, limit or 2048))


def _memory(session: Session) -> dict[str, int]:
    stream = session.stream
    compute = torch.empty((), dtype=stream.compute or session.stored).element_size()
    stored = torch.empty((), dtype=session.stored).element_size()
    both = stored if compute == stored else compute + stored
    block = max(sum(p.numel() for p in block.parameters()) for block in stream.blocks)
    outside = sum(p.numel() for p in stream.model.parameters()) - sum(p.numel() for p in stream.blocks.parameters())
    embedding: Any = stream.model.get_input_embeddings()
    hidden: int = embedding.weight.shape[1]
    widths = {info.cols for info in session.layers}
    gram = sum(4 * width * width for width in widths) if "gram" in session.recipe.needs else 0
    gradients = 4 * sizes(session.layers) + len(stream) * _tokens(session) * hidden * compute
    largest = max((info.numel for info in session.layers), default=0)
    return ({"gradients": gradients} if GRADIENT in session.recipe.needs else {}) | {
        "block": block * both,
        "embeddings": outside * (compute + stored),
        "activations": _tokens(session) * hidden * compute * ACTIVATION_COPIES,
        "statistics": gram * 3,
        "workspace": largest * 4 * (4 if session.recipe.grid is None else 7),
    }


def _seconds(session: Session) -> float:
    """Estimate the forwards: two per block, a third where the allocation needs a dense pass, four for gradients."""
    stream, recipe = session.stream, session.recipe
    weights = sum(p.numel() for p in stream.blocks.parameters())
    passes = 2 + (recipe.allocation.scale_from is not None) + 4 * (GRADIENT in recipe.needs)
    return 2.0 * weights * _tokens(session) * passes / _flops(stream.compute or session.stored, stream.device)


def _flops(dtype: torch.dtype, device: torch.device) -> float:
    """Time one matrix product and return operations per second."""
    a = torch.ones(512, 1024, dtype=dtype, device=device)
    b = torch.ones(1024, 1024, dtype=dtype, device=device)
    torch.mm(a, b)
    begun = time.perf_counter()
    torch.mm(a, b)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 2.0 * a.numel() * b.shape[1] / max(time.perf_counter() - begun, 1e-9)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
