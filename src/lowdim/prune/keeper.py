"""What a run has finished, on disk: a block that is recorded is never computed again."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from lowdim.core.files import read_json
from lowdim.core.quantize import Grid
from lowdim.models import ranks
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.checks import mask_hash
from lowdim.models.disk.files import companions
from lowdim.models.disk.manifest import FILE, Manifest, PackedPart, to_text
from lowdim.models.disk.packed import Packed, becomes_smaller, kept, pack
from lowdim.models.disk.packed_header import STEM, lay_out
from lowdim.models.disk.shard import Stored
from lowdim.models.disk.writer import Writer, shard_name
from lowdim.models.structure.layers import Layer
from lowdim.models.walk.stream import Block
from lowdim.prune.bench import Outcome
from lowdim.prune.codes import stored_codes
from lowdim.prune.session import Session
from lowdim.runs.fingerprint import goes_on

NO_CODES = "rounded, but stored as plain values: the tensor on disk joins layers with scales of their own"


@dataclass
class LayerRecord:
    """What the manifest says of a layer; the errors are explained at `lowdim.prune.engine.Outcome`."""

    block: int
    numel: int
    nonzeros: int
    sparsity: float
    target: float | None
    error: float | None
    rounding: float | None = None


@dataclass
class BlockRecord:
    """What the manifest says of a block."""

    layers: dict[str, LayerRecord] = field(default_factory=dict)
    masks: dict[str, str] = field(default_factory=dict)
    fallbacks: list[dict[str, str]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BlockRecord:
        """Rebuild from `to_dict`."""
        layers = {name: LayerRecord(**record) for name, record in data["layers"].items()}
        return cls(layers, dict(data["masks"]), list(data["fallbacks"]))


class Keeper:
    """Writes a run's results block by block, and finds them again.

    The first shard holds what lies outside the blocks, shard ``i + 2`` is block ``i``. On several ranks only rank 0
    writes; all wait for it.

    Args:
        session: the model.
        writer: the output; ``None`` on ranks other than 0.
        partial: the directory that the writer fills, readable by every rank.
    """

    def __init__(self, session: Session, writer: Writer | None, partial: Any) -> None:
        self.session = session
        self.writer = writer
        self.partial = partial
        self.state: dict[str, Any] = ranks.broadcast(writer.directory.state if writer else {})
        self.packed = session.recipe.storage == "packed"

    def start(self, fingerprint: Mapping[str, Any]) -> None:
        """Begin, or go on with, a run of this fingerprint.

        Raises:
            ResumeError: the unfinished run has another fingerprint; the first fields that differ are named.
        """
        if not goes_on(self.state, fingerprint, self.partial):
            if self.writer is not None:
                self.writer.directory.reset()  # files of which nothing says what they were made from
            self.state.update(fingerprint=dict(fingerprint), blocks={})
        self.save()

    def save(self) -> None:
        """Make the state durable."""
        if self.writer is not None:
            self.writer.directory.state = self.state
            self.writer.directory.save_state()
        ranks.barrier()

    def recall(self, key: str) -> Any:
        """Return what was remembered under a key, ``None`` if nothing was."""
        return self.state.get(key)

    def remember(self, key: str, value: Any) -> None:
        """Make a value durable under a key."""
        self.state[key] = value
        self.save()

    def blocks(self) -> dict[int, BlockRecord]:
        """Return the records of the finished blocks."""
        return {int(index): BlockRecord.from_dict(record) for index, record in self.state["blocks"].items()}

    def reader(self) -> Checkpoint:
        """Return what has been written so far as a checkpoint."""
        if self.writer is not None:
            self.writer.write_index()
        ranks.barrier()
        written = Checkpoint(self.partial)
        ranks.barrier()  # the first may be about to finish, which moves the files that the others open
        return written

    def write_outer(self, beside: Mapping[str, Tensor] | None = None) -> None:
        """Write embeddings, final norm and head as they are; again with what is to stand ``beside`` layers."""
        names = self.session.stream.outer_names()
        if self.writer is not None and (beside or not self.writer.directory.has(self._shard(0))):
            self.writer.write_shard(self._shard(0), {name: self._raw(name) for name in names} | dict(beside or {}))
        ranks.barrier()

    def write_block(self, block: Block, record: BlockRecord, pruned: Mapping[str, Tensor | Packed]) -> None:
        """Write a block with its pruned tensors, then its record."""
        if self.writer is not None:
            tensors, metadata = self._tensors(block, pruned)
            self.writer.write_shard(self._shard(block.index + 1), tensors, metadata)
        self.state["blocks"][str(block.index)] = record.to_dict()
        self.save()

    def _tensors(
        self, block: Block, pruned: Mapping[str, Tensor | Packed]
    ) -> tuple[dict[str, Tensor | Stored], dict[str, str]]:
        skeleton = self.session.stream.skeleton
        assert skeleton is not None
        rest = (name for name in skeleton.disk_names(f"{block.name}.") if name not in pruned)
        tensors: dict[str, Tensor | Stored | Packed] = {name: self._raw(name) for name in rest}
        return lay_out(tensors | {name: self._form(tensor) for name, tensor in pruned.items()})

    def _form(self, tensor: Tensor | Packed) -> Tensor | Packed:
        """Pack a pruned weight where that was asked for and makes it smaller."""
        if isinstance(tensor, Packed):
            return tensor
        return pack(tensor) if self.packed and becomes_smaller(tensor) else tensor

    def finish(self, manifest: Manifest) -> None:
        """Write what travels with the weights and the manifest; let the output appear."""
        writer, source = self.writer, self.session.source
        assert writer is not None and source is not None
        for name in companions(source.path):
            if name == "config.json":
                config = read_json(source.path / name) | {"dtype": str(self.session.stored).removeprefix("torch.")}
                config.pop("torch_dtype", None)
                writer.directory.write_text(name, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
            else:
                writer.directory.copy(source.path / name)
        if self.packed:
            writer.write_index()
            written = Checkpoint(self.partial)
            manifest.packed = PackedPart.of({n: f for n in written.names() if (f := written.form(n))})
        writer.consolidate()
        manifest.hashes.files = writer.hashes()
        writer.directory.write_text(FILE, to_text(manifest))
        writer.finish()

    def _raw(self, name: str) -> Tensor | Stored:
        """Return a tensor that is written as it was read, or cast if another dtype was asked for."""
        checkpoint = self.session.checkpoint
        assert checkpoint is not None
        info = checkpoint.info(name)
        cast = (
            self.session.recipe.dtype != "auto" and info.dtype.is_floating_point and info.dtype != self.session.stored
        )
        if cast:
            return checkpoint.read(name).to(self.session.stored)
        return checkpoint.read(name) if checkpoint.is_packed(name) else checkpoint.stored(name)

    def _shard(self, index: int) -> str:
        stem = STEM if self.packed else "model"
        return shard_name(index + 1, len(self.session.stream) + 1, stem)


def record_block(
    session: Session,
    block: Block,
    outcomes: Iterable[Outcome],
    targets: Mapping[str, float | None],
    grid: Grid | None,
) -> tuple[BlockRecord, dict[str, Tensor | Packed]]:
    """Count what a block's pruned tensors hold now, as they will be stored.

    Layers are recorded under the names that the checkpoint has for their tensors. Experts that share a parameter in
    memory may have tensors of their own on disk, and layers of their own in memory may share one there; the target and
    the error of such a tensor are not recorded.

    Returns:
        The record, and the tensors by their names on disk, those that were rounded packed.
    """
    record, tensors = BlockRecord(), dict[str, Tensor | Packed]()
    found = {outcome.name: outcome for outcome in outcomes}
    for names, layers in _together(session, block, found):
        for layer in layers:
            record.fallbacks += [{"layer": layer.name, "what": note, "detail": ""} for note in found[layer.name].notes]
        held = {name: block.masters[name.removeprefix(f"{block.name}.")].cpu() for name in names}
        own = found[layers[0].name] if len(layers) == len(names) == 1 else None
        codes = {layer.name: made for layer in layers if (made := found[layer.name].codes)}
        masked = not all(found[layer.name].whole for layer in layers)
        packed = stored_codes(session.stream, layers, codes, held, grid, masked) if codes and grid else {}
        for name, joined in session.stream.named_on_disk(held).items():
            tensor = joined if session.stream.skeleton is None else session.stream.skeleton.as_stored(name, joined)
            mask = kept(tensor)
            numel, nonzeros, key = mask.numel(), int(torch.count_nonzero(mask)), name.removesuffix(".weight")
            record.layers[key] = LayerRecord(
                block.index,
                numel,
                nonzeros,
                1 - nonzeros / numel,
                targets[own.name] if own else None,
                own.error if own else None,
                own.rounding if own else None,
            )
            record.masks[key] = mask_hash(mask)
            tensors[name] = packed.get(name) or tensor
            if name in packed and packed[name] is None:
                record.fallbacks.append({"layer": key, "what": NO_CODES, "detail": ""})
    return record, tensors


def _together(session: Session, block: Block, found: Container[str]) -> Iterator[tuple[list[str], list[Layer]]]:
    """Yield the parameters that are stored together, and those layers of the block in them that were pruned."""
    owners: dict[tuple[str, ...], list[Layer]] = {}
    for layer in block.layers:
        if layer.name in found:
            owners.setdefault(tuple(session.stream.stored_with(layer.parameter)), []).append(layer)
    for names, layers in owners.items():
        yield list(names), layers
